"""The choice of detections among the predictions of all queries."""

import torch
from torch import Tensor

from .box_ops import box_cxcywh_to_xyxy


def top_k(logits: Tensor, boxes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the k best (query, class) pairs of each image; no NMS and no threshold.

    Args:
        logits: (B, N, H).
        boxes: (B, N, 4) cxcywh in [0, 1].

    Returns:
        boxes xyxy in [0, 1] (B, k, 4), scores (B, k), classes (B, k); best first.
    """
    query, classes, scores = pairs_of(logits.sigmoid(), k)
    boxes_xyxy = box_cxcywh_to_xyxy(boxes).gather(1, query[..., None].expand(-1, -1, 4))
    return boxes_xyxy, scores, classes


def pairs_of(probabilities: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the k highest of probabilities (B, N, H).

    Returns:
        queries, classes and probabilities, (B, k) each, best first.
    """
    num_classes = probabilities.shape[-1]
    k = min(k, probabilities.shape[1] * num_classes)
    scores, index = probabilities.flatten(1).topk(k, dim=1)
    return torch.div(index, num_classes, rounding_mode="floor"), index % num_classes, scores


def best_pairs(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the k best (query, class) pairs of logits (B, N, H + 1), without the last class.

    Returns:
        queries, classes and probabilities, (B, k) each, best first.
    """
    return pairs_of(logits.softmax(-1)[..., :-1], k)
