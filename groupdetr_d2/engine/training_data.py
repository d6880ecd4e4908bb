"""The training data of a run: what is loaded and checked before its loader is built."""

import logging
from collections.abc import Callable, Iterable

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from torch.utils.data import DataLoader

from ..data.checks import DatasetError, check_registered
from ..data.coco_columns import JoinedImages
from ..data.loader import TrainingSet, build_train_loader
from ..distributed import first_process_first
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
    images = load_training_set(cfg)
    if mapper is not None:  # which may read more of an annotation than the task does
        return build_train_loader(cfg, TrainingSet(whole_dicts(cfg)), mapper)
    task = task_of(cfg)
    return build_train_loader(cfg, TrainingSet(images), task.build_mapper(cfg, is_train=True))


def load_training_set(cfg: CfgNode) -> JoinedImages:
    """Loads and checks the images of all training sets together.

    Raises:
        DatasetError: a data set is not registered, or something is wrong with it.
    """
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN is empty: name a data set, or give --train-json FILE")
    check_registered(cfg.DATASETS.TRAIN)
    with first_process_first():  # it parses large files, which the others then map
        data = task_of(cfg).data
        data.check_classes(cfg, cfg.DATASETS.TRAIN)
        parts = [data.images_of(name) for name in cfg.DATASETS.TRAIN]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        parts = [part.with_objects() for part in parts]
    images = JoinedImages(parts)
    counts = images.counts
    logger.info("%d training images, %d of them without objects", len(images), sum(counts == 0))
    if counts.max() > cfg.MODEL.DETR.NUM_OBJECT_QUERIES:
        logger.warning(
            "an image has %d objects, more than MODEL.DETR.NUM_OBJECT_QUERIES (%d): some of them "
            "can never be found",
            counts.max(),
            cfg.MODEL.DETR.NUM_OBJECT_QUERIES,
        )
    return images


def whole_dicts(cfg: CfgNode) -> list[dict]:
    """The dataset dicts of all training sets as they were registered."""
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )


def fingerprints_of(cfg: CfgNode, loader: Iterable) -> dict[str, str]:
    """A fingerprint of each training set, by its name; none if the loader is another's."""
    if number_of_images(loader) is None:
        return {}
    data = task_of(cfg).data
    return {name: data.fingerprint(name) for name in cfg.DATASETS.TRAIN}


def number_of_images(loader: Iterable) -> int | None:
    """The images of an epoch; None if the loader has no data set of a known length."""
    dataset = loader.dataset if isinstance(loader, DataLoader) else None
    return len(dataset) if isinstance(dataset, TrainingSet) else None
