"""Label statistics of a data set: images, objects and sizes of every class."""

from collections.abc import Iterable

import numpy as np

from .coco_columns import MEDIUM, SMALL, CocoColumns, is_bad_box
from .coco_rules import plain

ALL = "all"


def label_rows(columns: CocoColumns) -> list[dict]:
    """Lists every class with its images, its objects and their sizes; the last row is of all.

    Crowds and bad boxes are left out. "small", "medium" and "large" count boxes of areas up to 32 x
    32 and 96 x 96 pixels and beyond; "median side" is the median root of an area, in pixels.
    """
    good = ~columns.crowd & ~is_bad_box(columns)
    classes, images = columns.class_of[good], columns.image_of[good]
    areas = columns.boxes[good, 2] * columns.boxes[good, 3]
    number = len(columns.class_names)
    size = np.digitize(areas, (SMALL, MEDIUM))  # 0 small, 1 medium, 2 large
    counts = np.bincount(classes * 3 + size, minlength=3 * number).reshape(number, 3)
    medians = medians_of(classes, np.sqrt(areas), number)
    seen = images_by_class(classes, images, number)
    rows = [
        _row(plain(name), *values)
        for name, *values in zip(columns.class_names, seen, counts, medians, strict=True)
    ]
    median = float(np.median(np.sqrt(areas))) if len(areas) else np.nan
    return [*rows, _row(ALL, len(np.unique(images)), counts.sum(0), median)]


def _row(name: str, images: int, counts: np.ndarray, side: float) -> dict:
    small, medium, large = (int(count) for count in counts)
    sizes = {"small": small, "medium": medium, "large": large, "median side": round(side, 1)}
    return {"class": name, "images": int(images), "objects": small + medium + large, **sizes}


def images_by_class(classes: np.ndarray, images: np.ndarray, number: int) -> np.ndarray:
    """Counts the images that each of `number` classes is on."""
    pairs = np.unique(np.stack([classes, images]), axis=1) if len(classes) else np.zeros((2, 0))
    return np.bincount(pairs[0].astype(np.int64), minlength=number)


def medians_of(classes: np.ndarray, values: np.ndarray, number: int) -> list[float]:
    """Computes the median of the values of each of `number` classes; NaN where there are none."""
    order = np.argsort(classes, kind="stable")
    ends = np.searchsorted(classes[order], np.arange(1, number))
    parts: Iterable[np.ndarray] = np.split(values[order], ends)
    return [float(np.median(part)) if len(part) else np.nan for part in parts]
