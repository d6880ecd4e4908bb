"""The detections that an evaluation left, beside the ground truth of each image."""

import itertools
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from ..data.catalog import images_of
from ..data.image_file import read_bgr
from ..data.segmentations import compressed
from .detection_curves import ImageResult, box_overlaps


class _Result(msgspec.Struct, gc=False):
    """A detection in COCO's format."""

    image_id: int | str
    category_id: int | str
    bbox: tuple[float, float, float, float]
    score: float
    segmentation: Any = None  # of a model of masks


def read_box_results(dataset: str, results_file: Path) -> list[ImageResult]:
    """Reads the detections of a model of boxes; overlaps are those of boxes."""
    return _read_results(dataset, results_file, with_masks=False)


def read_mask_results(dataset: str, results_file: Path) -> list[ImageResult]:
    """Reads the detections of a model of masks; overlaps are those of masks."""
    return _read_results(dataset, results_file, with_masks=True)


def _read_results(dataset: str, results_file: Path, *, with_masks: bool) -> list[ImageResult]:
    images = images_of(dataset, is_evaluated=True, with_masks=with_masks)
    columns = images.columns
    records = msgspec.json.decode(results_file.read_bytes(), type=list[_Result])
    image_ids, category_ids, found_boxes, found_scores, found_masks = (
        list(map(attrgetter(name), records)) for name in _Result.__struct_fields__
    )
    places = {identity: i for i, identity in enumerate(columns.image_ids)}
    class_places = {identity: i for i, identity in enumerate(columns.category_ids)}
    image_of = np.array(list(map(places.__getitem__, image_ids)), dtype=int)
    classes = np.array(list(map(class_places.__getitem__, category_ids)), dtype=int)
    scores, boxes = np.array(found_scores, dtype=np.float64), _corners(found_boxes)
    order = np.lexsort((-scores, image_of))  # best first in each image
    ends = np.searchsorted(image_of[order], np.arange(len(columns.image_ids) + 1))
    results = []
    for d, own in zip(images, (order[a:b] for a, b in itertools.pairwise(ends)), strict=True):
        masks = [found_masks[i] for i in own] if with_masks else None
        results.append(_image_result(d, boxes[own], classes[own], scores[own], masks))
    return results


def _image_result(
    d: dict,
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    masks: list[dict] | None,
) -> ImageResult:
    annotations, size = d["annotations"], (d["height"], d["width"])
    true_boxes = _corners([a["bbox"] for a in annotations])
    crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
    true_classes = np.array([a["category_id"] for a in annotations], dtype=int)
    true_masks = None
    if masks is None:
        overlaps = box_overlaps(boxes, true_boxes, crowd)
    else:
        true_masks = [compressed(a["segmentation"], size) for a in annotations]
        overlaps = mask_overlaps(masks, true_masks, crowd)

    def truth() -> Instances:
        values = {"gt_classes": torch.from_numpy(true_classes), **_bitmaps("gt", true_masks, size)}
        return Instances(size, gt_boxes=Boxes(true_boxes), **values)

    def found() -> Instances:
        values = {"scores": torch.from_numpy(scores), "pred_classes": torch.from_numpy(classes)}
        return Instances(size, pred_boxes=Boxes(boxes), **values, **_bitmaps("pred", masks, size))

    return ImageResult(
        name=d["file_name"],
        true_classes=true_classes,
        crowd=crowd,
        classes=classes,
        scores=scores,
        overlaps=overlaps,
        truth=truth,
        found=found,
        picture=partial(read_bgr, d["file_name"]),
    )


def mask_overlaps(masks: list[dict], others: list[dict], crowd: np.ndarray) -> np.ndarray:
    """Computes the IoU (M, T) of RLEs as COCO does; over a crowd it is the share inside."""
    if not masks or not others:
        return np.zeros((len(masks), len(others)))
    return np.asarray(coco_mask.iou(masks, others, crowd.astype(np.uint8).tolist()))


def _bitmaps(prefix: str, masks: list[dict] | None, size: tuple[int, int]) -> dict:
    """Makes the field of masks (n, height, width) bool, where there are masks."""
    if masks is None:
        return {}
    pixels = np.zeros((len(masks), *size), dtype=bool)
    for i, mask in enumerate(masks):
        pixels[i] = coco_mask.decode(mask)
    return {f"{prefix}_masks": torch.from_numpy(pixels)}


def _corners(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Makes (M, 4) x0, y0, x1, y1 of boxes x, y, width, height."""
    numbers = np.fromiter(itertools.chain.from_iterable(boxes), np.float64)  # thrice as fast
    x, y, width, height = numbers.reshape(-1, 4).T
    return np.stack([x, y, x + width, y + height], 1)
