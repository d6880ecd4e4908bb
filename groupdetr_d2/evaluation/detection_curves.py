"""Precision, recall, F1 and confusion of detections, from COCO-style matching at one overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    truth: Instances | None = None  # of T objects, to be drawn
    found: Instances | None = None  # of M detections, to be drawn


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


def match_image(image: ImageResult, category: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds which detections of a class are right, (M,) bool, and which count, (M,) bool.

    Best first, each takes the object of its class that it overlaps most and that is free.
    """
    own, true = image.classes == category, image.true_classes == category
    crowd = image.crowd[true]
    iou = image.overlaps[own][:, true]
    is_free = np.ones(len(crowd), dtype=bool)
    is_right, counts = np.zeros(len(iou), dtype=bool), np.ones(len(iou), dtype=bool)
    for i, row in enumerate(iou):
        free = np.where(is_free & ~crowd, row, 0)
        if len(free) and free.max() >= IOU:
            is_right[i], is_free[free.argmax()] = True, False
        elif len(free) and np.where(crowd, row, 0).max() >= IOU:
            counts[i] = False
    return is_right, counts


def all_curves(images: Sequence[ImageResult], num_classes: int) -> tuple[list[Curves], Curves]:
    """Computes the curves of each class, and of all detections together."""
    scores: list[list] = [[np.zeros(0)] for _ in range(num_classes)]
    right: list[list] = [[np.zeros(0, dtype=bool)] for _ in range(num_classes)]
    num_objects = np.zeros(num_classes, dtype=int)
    for image in images:
        num_objects += np.bincount(image.true_classes[~image.crowd], minlength=num_classes)
        for category in np.unique(image.classes):
            is_right, counts = match_image(image, category)
            scores[category].append(image.scores[image.classes == category][counts])
            right[category].append(is_right[counts])
    flat = [(np.concatenate(s), np.concatenate(r)) for s, r in zip(scores, right, strict=True)]
    by_class = [_curves(*pair, int(n)) for pair, n in zip(flat, num_objects, strict=True)]
    all_scores, all_right = (np.concatenate(parts) for parts in zip(*flat, strict=True))
    return by_class, _curves(all_scores, all_right, int(num_objects.sum()))


def _curves(scores: np.ndarray, right: np.ndarray, num_objects: int) -> Curves:
    """Computes curves from every detection's score and whether it is right."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.maximum(np.arange(len(hits)) + 1, 1)
    return Curves(num_objects, scores[order], precision, hits / max(num_objects, 1))


def best_threshold(together: Curves) -> float:
    """Finds the score above which F1 of all classes together is highest; 0.5 without detections."""
    f1 = together.f1
    if not len(f1) or f1.max() == 0:
        return 0.5
    return float(together.scores[int(f1.argmax())])


def confusion_matrix(
    images: Sequence[ImageResult], num_classes: int, threshold: float
) -> np.ndarray:
    """Counts (C + 1, C + 1) pairs of true class and found class; the last of each is "nothing".

    Detections of at least `threshold` take, best first, the free object that they overlap most,
    whatever its class.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=int)
    for image in images:
        for true, found in pairs_of(image, threshold):
            matrix[true, found] += 1
    return matrix


def pairs_of(image: ImageResult, threshold: float) -> list[tuple[int, int]]:
    """Pairs (true class, found class) of every object and detection; -1 where there is none."""
    kept = image.scores >= threshold
    iou = image.overlaps[kept]
    is_free = ~image.crowd
    pairs = []
    for row, found in zip(iou, image.classes[kept], strict=True):
        free = np.where(is_free, row, 0)
        if len(free) and free.max() >= IOU:
            target = int(free.argmax())
            is_free[target] = False
            pairs.append((int(image.true_classes[target]), int(found)))
        elif not len(row) or np.where(image.crowd, row, 0).max() < IOU:
            pairs.append((-1, int(found)))
    return pairs + [(int(c), -1) for c in image.true_classes[is_free]]


def mistakes_of(image: ImageResult, threshold: float) -> int:
    """Counts objects missed, detections of nothing, and wrong classes."""
    return sum(true != found for true, found in pairs_of(image, threshold))
