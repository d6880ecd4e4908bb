"""Merging of detections of several sources: NMS, and weighted boxes fusion.

Weighted boxes fusion is Solovyev, Wang and Gabruseva's (Image and Vision Computing 107, 2021,
arXiv 1910.13302, Sec. 3).
"""

from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_iou

NMS_IOU, FUSION_IOU = 0.7, 0.55  # overlap at which two boxes are one object


def suppress(instances: Instances, iou: float = NMS_IOU) -> Instances:
    """Suppresses overlapping detections of each class (NMS); returns the rest, best first."""
    boxes = instances.pred_boxes.tensor
    return instances[batched_nms(boxes, instances.scores, instances.pred_classes, iou)]


def merge_by_nms(sources: Sequence[Instances], limit: int, iou: float = NMS_IOU) -> Instances:
    """Merges all sources by NMS within each class; returns the best `limit`."""
    return suppress(Instances.cat(list(sources)), iou)[:limit]


def merge_by_fusion(
    sources: Sequence[Instances], limit: int, iou: float = FUSION_IOU, lowest_score: float = 0.01
) -> Instances:
    """Merges overlapping boxes of a class into their mean by score (weighted boxes fusion).

    A fused score is the mean of its boxes' scores, times the share of sources that have a box
    there.

    Args:
        sources: `pred_boxes`, `scores` and `pred_classes` of one image each.
        limit: detections kept.
        iou: above which a box joins a cluster.
        lowest_score: boxes below are left out.
    """
    together = Instances.cat(list(sources))
    together = together[together.scores >= lowest_score]
    together = together[together.scores.argsort(descending=True)]
    boxes, scores, classes = [], [], []
    for category in together.pred_classes.unique().tolist():
        same = together[together.pred_classes == category]
        fused, confidence = _fuse(same.pred_boxes.tensor, same.scores, iou, len(sources))
        boxes.append(fused)
        scores.append(confidence)
        classes.append(torch.full_like(confidence, category, dtype=torch.int64))
    result = Instances(sources[0].image_size)
    if not boxes:
        return sources[0][:0]
    result.pred_boxes, result.scores = Boxes(torch.cat(boxes)), torch.cat(scores)
    result.pred_classes = torch.cat(classes)
    return result[result.scores.argsort(descending=True)[:limit]]


def _fuse(boxes: Tensor, scores: Tensor, iou: float, num_sources: int) -> tuple[Tensor, Tensor]:
    """Fuses boxes (M, 4) and scores (M,) of one class, best first."""
    weighted, weights, counts = boxes[:0], scores[:0], scores[:0]
    for box, score in zip(boxes, scores, strict=True):
        overlaps = box_iou(box[None], weighted / weights[:, None])[0]
        if len(overlaps) and overlaps.max() > iou:
            cluster = int(overlaps.argmax())
        else:
            cluster = len(weights)
            weighted = torch.cat([weighted, boxes.new_zeros(1, 4)])
            weights, counts = (torch.cat([x, x.new_zeros(1)]) for x in (weights, counts))
        weighted[cluster] += score * box
        weights[cluster] += score
        counts[cluster] += 1
    confidence = weights / counts * counts.clamp(max=num_sources) / num_sources
    return weighted / weights[:, None], confidence
