"""The training data of a run: what is loaded and checked before its loader is built."""

import logging
from collections.abc import Callable, Iterable

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from torch.utils.data import DataLoader

from ..data.checks import DatasetError, check_annotations, check_data, check_registered
from ..data.loader import TrainingSet, build_train_loader
from ..modeling.meta_arch import task_of

logger = logging.getLogger(__name__)


def build_training_loader(cfg: CfgNode, mapper: Callable[[dict], dict] | None = None) -> DataLoader:
    """Builds the loader of DATASETS.TRAIN, whose order and random numbers depend on SEED alone.

    Args:
        mapper: makes a model's input from a dataset dict; the task's if not given. Its random
            numbers are seeded for every image, so that a resumed run continues exactly.

    Raises:
        DatasetError: a data set is not registered, or something is wrong with it.
    """
    if mapper is not None:  # which may read more of an annotation than the task does
        return build_train_loader(cfg, TrainingSet(load_training_set(cfg)), mapper)
    task = task_of(cfg)
    training_set = TrainingSet(load_training_set(cfg, task.annotation_fields))
    return build_train_loader(cfg, training_set, task.build_mapper(cfg, is_train=True))


def load_training_set(cfg: CfgNode, fields: tuple[str, ...] = ()) -> list[dict]:
    """Loads and checks the dataset dicts of all training sets together.

    Args:
        fields: the fields of annotations that are kept; all if none are given.

    Raises:
        DatasetError: a data set is not registered, or something is wrong with it.
    """
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN is empty: name a data set, or give --train-json FILE")
    check_registered(cfg.DATASETS.TRAIN)
    check_data(cfg, cfg.DATASETS.TRAIN)
    dicts: list[dict] = []
    for name in cfg.DATASETS.TRAIN:
        found = get_detection_dataset_dicts(
            [name], filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        dicts += [_with_fields_alone(d, fields) for d in check_annotations(name, found)]
    empty = sum(not d["annotations"] for d in dicts)
    logger.info("%d training images, %d of them without objects", len(dicts), empty)
    most = max((len(d["annotations"]) for d in dicts), default=0)
    if most > cfg.MODEL.DETR.NUM_OBJECT_QUERIES:
        logger.warning(
            "an image has %d objects, more than MODEL.DETR.NUM_OBJECT_QUERIES (%d): some of them "
            "can never be found",
            most,
            cfg.MODEL.DETR.NUM_OBJECT_QUERIES,
        )
    return dicts


def _with_fields_alone(d: dict, fields: tuple[str, ...]) -> dict:
    """Drops what the task does not read: polygons would be most of the memory of a process."""
    annotations = d.get("annotations", [])
    if fields:
        annotations = [{k: a[k] for k in fields if k in a} for a in annotations]
    return {**d, "annotations": annotations}


def number_of_images(loader: Iterable) -> int | None:
    """The images of an epoch; None if the loader has no data set of a known length."""
    dataset = loader.dataset if isinstance(loader, DataLoader) else None
    return len(dataset) if isinstance(dataset, TrainingSet) else None
