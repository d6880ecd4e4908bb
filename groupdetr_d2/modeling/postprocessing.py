"""Postprocessing: from logits and boxes to Detectron2 `Instances`."""

from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..layers.selection import top_k
from ..structures import sizes_of


def top_k_instances(
    logits: Tensor, boxes: Tensor, image_sizes: list[tuple[int, int]], k: int
) -> list[Instances]:
    """Makes `Instances` with boxes in pixels of :func:`top_k`.

    Args:
        image_sizes: (height, width) of each image.

    Returns:
        per image, `pred_boxes` xyxy in pixels, `scores` and `pred_classes`, best first.
    """
    boxes_xyxy, scores, classes = top_k(logits, boxes, k)
    boxes_xyxy = boxes_xyxy * sizes_of(tuple(image_sizes), boxes_xyxy).repeat(1, 2)[:, None]
    results = []
    for b, size in enumerate(image_sizes):
        instances = Instances(size)
        instances.pred_boxes = Boxes(boxes_xyxy[b])
        instances.scores = scores[b]
        instances.pred_classes = classes[b]
        results.append(instances)
    return results
