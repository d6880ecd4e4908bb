"""Postprocessing: from logits and boxes to Detectron2 `Instances`."""

from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..layers.selection import top_k


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
    scales = boxes_xyxy.new_tensor([(w, h, w, h) for h, w in image_sizes])
    results = []
    for b, (height, width) in enumerate(image_sizes):
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(boxes_xyxy[b] * scales[b])
        instances.scores = scores[b]
        instances.pred_classes = classes[b]
        results.append(instances)
    return results
