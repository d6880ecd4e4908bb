"""Checks of a data set before training starts."""

import difflib
from collections.abc import Sequence

from detectron2.data import DatasetCatalog

from ..errors import UserError


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


def check_number_of_classes(number: int, name: str, classes: Sequence[str]) -> None:
    """Checks that MODEL.DETR.NUM_CLASSES is the number of a data set's classes.

    Raises:
        DatasetError: naming the set and both numbers.
    """
    if len(classes) != number:
        raise DatasetError(
            f"MODEL.DETR.NUM_CLASSES is {number}, but data set {name} has {len(classes)} classes: "
            f"set MODEL.DETR.NUM_CLASSES {len(classes)}"
        )


def check_fields(name: str, dataset_dicts: Sequence[dict]) -> None:
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
