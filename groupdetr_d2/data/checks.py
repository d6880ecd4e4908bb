"""Checks of a data set before training starts."""

import difflib
import logging
import math
import os
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import UserError

logger = logging.getLogger(__name__)


class DatasetError(UserError):
    """A data set cannot be used as it is; the message names the file and the remedy."""


# what training and evaluation read of Detectron2's dataset dicts, and of their annotations
IMAGE_FIELDS = ("file_name", "height", "width", "image_id")
ANNOTATION_FIELDS = ("bbox", "bbox_mode", "category_id")


def check_registered(names: Sequence[str]) -> None:
    """Checks that data sets are registered.

    Raises:
        DatasetError: naming the set, and the nearest registered names.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            raise DatasetError(
                f"data set {name} is not registered; near names: {', '.join(near) or 'none'}. For "
                "your own data use --train-json, --train-images, --val-json and --val-images"
            )


def check_data(cfg, names: Sequence[str]) -> None:
    """Checks that annotation files exist, and have as many classes as the model.

    Raises:
        DatasetError: naming the set, and the file or both numbers.
    """
    for name in names:
        json_file = MetadataCatalog.get(name).get("json_file")
        # a set of another format gets a json from COCO's evaluator, when it is evaluated
        is_needed = json_file and MetadataCatalog.get(name).get("image_root") is not None
        if is_needed and not os.path.isfile(json_file):
            raise DatasetError(
                f"data set {name}: {json_file} does not exist. Set $DETECTRON2_DATASETS (now "
                f"{os.getenv('DETECTRON2_DATASETS', 'datasets')}) to the folder that holds coco/, "
                "or name your own data with --train-json and so on"
            )
    check_classes(cfg, names)


def check_classes(cfg, names: Sequence[str]) -> None:
    """Checks that MODEL.DETR.NUM_CLASSES is the number of classes of every data set.

    Raises:
        DatasetError: naming the set and both numbers, or the set that has no class names.
    """
    for name in names:
        if MetadataCatalog.get(name).get("thing_classes") is None:
            DatasetCatalog.get(name)  # reading the annotations sets the classes
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is None:
            raise DatasetError(
                f"data set {name} has no class names: give it some where it is registered, "
                f"MetadataCatalog.get({name!r}).set(thing_classes=[...])"
            )
        if len(classes) != cfg.MODEL.DETR.NUM_CLASSES:
            raise DatasetError(
                f"MODEL.DETR.NUM_CLASSES is {cfg.MODEL.DETR.NUM_CLASSES}, but data set {name} has "
                f"{len(classes)} classes: set MODEL.DETR.NUM_CLASSES {len(classes)}"
            )


def check_annotations(name: str, dataset_dicts: list[dict]) -> list[dict]:
    """Checks image files and boxes; returns the dicts without bad boxes where dropping is allowed.

    A box is bad if a coordinate is not finite, it has no area, or it lies wholly outside its image.
    The sets that Detectron2 registers itself are known to have a few, which are left out.

    Raises:
        DatasetError: naming the first offenders.
    """
    _check_fields(name, dataset_dicts)
    _check_files(name, dataset_dicts)
    bad = [
        (d["file_name"], i, a)
        for d in dataset_dicts
        for i, a in enumerate(d.get("annotations", ()))
        if not is_usable_box(a["bbox"], a["bbox_mode"], d["width"], d["height"])
    ]
    if not bad:
        return dataset_dicts
    listing = "; ".join(f"{file} box {i} {a['bbox']} (x, y, w, h)" for file, i, a in bad[:5])
    message = f"data set {name}: {len(bad)} boxes have no area or lie outside: {listing}"
    if MetadataCatalog.get(name).get("bad_boxes", "drop") == "error":
        raise DatasetError(
            f"{message}. Mend them, or leave them out: DATASETS.CUSTOM.BAD_BOXES drop"
        )
    logger.warning("%s. Training leaves them out; COCO's evaluation counts them", message)
    return [_without_bad_boxes(d) for d in dataset_dicts]


def is_usable_box(bbox: Sequence[float], mode: BoxMode, width: float, height: float) -> bool:
    """Whether a box has an area and touches its image."""
    if not all(math.isfinite(x) for x in bbox):
        return False
    if mode == BoxMode.XYWH_ABS:  # COCO's 860,000 boxes are checked at every start
        x0, y0, x1, y1 = bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]
    else:
        x0, y0, x1, y1 = BoxMode.convert(list(bbox), mode, BoxMode.XYXY_ABS)
    return x1 > x0 and y1 > y0 and x1 > 0 and y1 > 0 and x0 < width and y0 < height


def _without_bad_boxes(d: dict) -> dict:
    kept = [
        a
        for a in d.get("annotations", ())
        if is_usable_box(a["bbox"], a["bbox_mode"], d["width"], d["height"])
    ]
    return {**d, "annotations": kept}


def _check_fields(name: str, dataset_dicts: list[dict]) -> None:
    """Checks the fields of dicts, which a function of the user's own may have made."""
    if not dataset_dicts:
        raise DatasetError(f"data set {name} has no images")
    for d in dataset_dicts:
        lacking = [field for field in IMAGE_FIELDS if field not in d]
        for a in d.get("annotations", ()):
            lacking += [f"annotations: {field}" for field in ANNOTATION_FIELDS if field not in a]
        if lacking:
            raise DatasetError(
                f"data set {name}: image {d.get('file_name', d)!s:.200} has no {lacking[0]!r}, "
                "which is one of the fields of Detectron2's dataset dicts"
            )


def _check_files(name: str, dataset_dicts: list[dict]) -> None:
    missing = [d["file_name"] for d in dataset_dicts if not os.path.isfile(d["file_name"])]
    if missing:
        raise DatasetError(
            f"data set {name}: {len(missing)} of {len(dataset_dicts)} image files are missing, the "
            f"first is {missing[0]}. Check the image folder (--train-images, --val-images, or "
            "$DETECTRON2_DATASETS for Detectron2's own sets)"
        )
