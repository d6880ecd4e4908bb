"""From logits and boxes to Detectron2 `Instances`."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..layers.box_ops import box_cxcywh_to_xyxy


def top_k(logits: Tensor, boxes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best (query, class) pairs of each image; no NMS and no threshold.

    Args:
        logits: (B, N, H).
        boxes: (B, N, 4) cxcywh in [0, 1].

    Returns:
        boxes xyxy in [0, 1] (B, k, 4), scores (B, k), classes (B, k); best first.
    """
    num_classes = logits.shape[-1]
    k = min(k, logits.shape[1] * num_classes)
    scores, index = logits.sigmoid().flatten(1).topk(k, dim=1)  # (B, k)
    query = torch.div(index, num_classes, rounding_mode="floor")
    boxes_xyxy = box_cxcywh_to_xyxy(boxes).gather(1, query[..., None].expand(-1, -1, 4))
    return boxes_xyxy, scores, index % num_classes


def top_k_instances(
    logits: Tensor, boxes: Tensor, image_sizes: list[tuple[int, int]], k: int
) -> list[Instances]:
    """Those of :func:`top_k` as `Instances`, with boxes in pixels.

    Args:
        image_sizes: (height, width) of each image.

    Returns:
        per image, `pred_boxes` xyxy in pixels, `scores` and `pred_classes`, best first.
    """
    boxes_xyxy, scores, classes = top_k(logits, boxes, k)
    scales = boxes_xyxy.new_tensor([(w, h, w, h) for h, w in image_sizes])
    results = []
    for b, (height, width) in enumerate(image_sizes):
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(boxes_xyxy[b] * scales[b])
        instances.scores = scores[b]
        instances.pred_classes = classes[b]
        results.append(instances)
    return results
