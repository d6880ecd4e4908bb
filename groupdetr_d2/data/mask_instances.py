"""Detectron2's `Instances` with masks, from the objects of an augmented image."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from pycocotools import mask as coco_mask

from .segmentations import Mask, bitmap


def mask_instances(
    objects: Sequence[dict],
    transforms: T.TransformList,
    size: tuple[int, int],
    new_size: tuple[int, int],
) -> Instances:
    """Makes `gt_masks`, `gt_boxes` around them and `gt_classes`; objects out of sight are left out.

    Args:
        objects: with "segmentation" and "category_id".
        transforms: those of the image.
        size, new_size: (height, width) of the image before and after them.
    """
    masks = np.zeros((len(objects), *new_size), dtype=bool)
    for i, x in enumerate(objects):
        masks[i] = transformed(x["segmentation"], transforms, size, new_size)
    is_seen = masks.any((1, 2))
    bit_masks = BitMasks(torch.from_numpy(masks[is_seen]))
    classes = np.array([x["category_id"] for x in objects], dtype=np.int64)[is_seen]
    boxes = np.array([box_around(mask) for mask in masks[is_seen]], dtype=np.float32)
    return Instances(
        new_size,
        gt_masks=bit_masks,
        gt_boxes=Boxes(torch.from_numpy(boxes.reshape(-1, 4))),
        gt_classes=torch.from_numpy(classes),
    )


def transformed(
    mask: Mask, transforms: T.TransformList, size: tuple[int, int], new_size: tuple[int, int]
) -> np.ndarray:
    """Draws a mask as the transforms leave it, (height, width) bool.

    The points of polygons are moved, and what they enclose is drawn on the image that comes out:
    pycocotools draws what lies inside the border of it.
    """
    if not isinstance(mask, list):
        pixels = bitmap(mask, size).astype(np.uint8)
        return transforms.apply_segmentation(pixels).astype(bool)
    polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in mask]
    moved = [transforms.apply_coords(points.copy()).ravel().tolist() for points in polygons]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, *new_size)))
    points = np.concatenate(polygons)
    if (points < 0).any() or (points > size[::-1]).any():  # not into the padding
        drawn &= transforms.apply_segmentation(np.ones(size, dtype=np.uint8))
    return drawn.astype(bool)


def box_around(mask: np.ndarray) -> list[int]:
    """Computes x0, y0, x1, y1 around the pixels of a mask that has some."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
