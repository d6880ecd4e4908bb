"""Precision, recall, F1 and confusion of detections, from COCO-style matching at one overlap."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances
from pycocotools import mask as coco_mask

IOU = 0.5  # overlap at which a detection is an object's
RECALL_POINTS = np.linspace(0, 1, 101)  # COCO's


@dataclass
class ImageResult:
    """The ground truth and the detections of one image."""

    name: str
    true_classes: np.ndarray  # (T,)
    crowd: np.ndarray  # (T,) bool: regions that hold many objects; detections there do not count
    classes: np.ndarray  # (M,), best first
    scores: np.ndarray  # (M,)
    overlaps: np.ndarray  # (M, T) IoU as the task has it
    truth: Callable[[], Instances] | None = None  # makes T objects, to be drawn
    found: Callable[[], Instances] | None = None  # makes M detections, to be drawn
    picture: Callable[[], Any] | None = None  # makes what they are drawn on


@dataclass
class Curves:
    """Precision and recall of one class's detections, in the order of their scores."""

    num_objects: int
    scores: np.ndarray  # (M,), falling
    precision: np.ndarray  # (M,) of this and all better ones
    recall: np.ndarray  # (M,)

    @property
    def f1(self) -> np.ndarray:
        """The F1 of each and all better detections, (M,)."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / np.maximum(total, 1e-12)

    @property
    def average_precision(self) -> float:
        """COCO's AP at this IoU: the mean of the best precision at or above each of 101 recalls."""
        if not self.num_objects:
            return float("nan")
        envelope = np.maximum.accumulate(self.precision[::-1])[::-1]
        index = np.searchsorted(self.recall, RECALL_POINTS, side="left")
        reached = index < len(envelope)
        return float(envelope[index[reached]].sum() / len(RECALL_POINTS))

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall and F1 of the detections with at least this score."""
        kept = int((self.scores >= threshold).sum())
        if not kept:
            return 0.0, 0.0, 0.0
        precision, recall, f1 = (float(x[kept - 1]) for x in (self.precision, self.recall, self.f1))
        return precision, recall, f1


def box_overlaps(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Computes the IoU (M, T) of xyxy boxes as COCO does.

    Over a crowd it is the share of the box that lies inside.
    """
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))

    def xywh(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], 1).astype(np.float64)

    return coco_mask.iou(xywh(boxes), xywh(others), crowd.astype(np.uint8).tolist())


def match_image(image: ImageResult) -> tuple[np.ndarray, np.ndarray]:
    """Finds which detections are right, (M,) bool, and which count, (M,) bool.

    Best first, each takes the object of its class that it overlaps most and that is free. Those
    that overlap none, which are nearly all, need no loop.
    """
    number = len(image.classes)
    is_right, counts = np.zeros(number, dtype=bool), np.ones(number, dtype=bool)
    same = image.classes[:, None] == image.true_classes
    iou = np.where(same, image.overlaps, 0)  # (M, T)
    is_free = ~image.crowd
    for i in np.flatnonzero(iou.max(1, initial=0) >= IOU):
        free = np.where(is_free, iou[i], 0)
        if free.max() >= IOU:
            is_right[i], is_free[free.argmax()] = True, False
        elif np.where(image.crowd, iou[i], 0).max() >= IOU:
            counts[i] = False
    return is_right, counts


def all_curves(images: Sequence[ImageResult], num_classes: int) -> tuple[list[Curves], Curves]:
    """Computes the curves of each class, and of all detections together."""
    num_objects = np.zeros(num_classes, dtype=int)
    parts = [(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=int))]
    for image in images:
        num_objects += np.bincount(image.true_classes[~image.crowd], minlength=num_classes)
        is_right, counts = match_image(image)
        parts.append((image.scores[counts], is_right[counts], image.classes[counts]))
    scores, right, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    scores, right, classes = scores[order], right[order], classes[order]
    # numpy sorts small integers in linear time
    by_class = np.argsort(classes.astype(np.min_scalar_type(num_classes)), kind="stable")
    ends = np.searchsorted(classes[by_class], np.arange(num_classes + 1))
    chosen = (by_class[first:last] for first, last in itertools.pairwise(ends))
    curves = [
        _curves(scores[own], right[own], int(number))
        for own, number in zip(chosen, num_objects, strict=True)
    ]
    return curves, _curves(scores, right, int(num_objects.sum()))


def _curves(scores: np.ndarray, right: np.ndarray, num_objects: int) -> Curves:
    """Computes curves from every detection's score, falling, and whether it is right."""
    hits = np.cumsum(right)
    precision = hits / np.maximum(np.arange(len(hits)) + 1, 1)
    return Curves(num_objects, scores, precision, hits / max(num_objects, 1))


def best_threshold(together: Curves) -> float:
    """Finds the score above which F1 of all classes together is highest; 0.5 without detections."""
    f1 = together.f1
    if not len(f1) or f1.max() == 0:
        return 0.5
    return float(together.scores[int(f1.argmax())])


def confusion_matrix(pairs: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """Counts (C + 1, C + 1) pairs of true class and found class; the last of each is "nothing".

    Args:
        pairs: of each image, see :func:`pairs_of`.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=int)
    np.add.at(matrix, tuple(np.concatenate(pairs).T), 1)
    return matrix


def pairs_of(image: ImageResult, threshold: float) -> np.ndarray:
    """Pairs true and found class of every object and detection, (P, 2); -1 where there is none.

    Detections of at least `threshold` take, best first, the free object that they overlap most,
    whatever its class.
    """
    kept = image.scores >= threshold
    iou, classes = image.overlaps[kept], image.classes[kept]
    is_free = ~image.crowd
    true = np.full(len(classes), -1)  # of each detection
    is_shown = np.ones(len(classes), dtype=bool)
    for i in np.flatnonzero(iou.max(1, initial=0) >= IOU):
        free = np.where(is_free, iou[i], 0)
        if free.max() >= IOU:
            target = free.argmax()
            true[i], is_free[target] = image.true_classes[target], False
        else:
            is_shown[i] = np.where(image.crowd, iou[i], 0).max() < IOU
    missed = image.true_classes[is_free]
    found = np.stack([true, classes], 1)[is_shown]
    return np.concatenate([found, np.stack([missed, np.full(len(missed), -1)], 1)])


def mistakes_of(pairs: np.ndarray) -> int:
    """Counts objects missed, detections of nothing and wrong classes in the pairs of an image."""
    return int((pairs[:, 0] != pairs[:, 1]).sum())
