"""Postprocessing: from the predictions of queries to Detectron2 `Instances`."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..layers.box3d_ops import decode_boxes
from ..layers.mask_ops import boxes_around, masks_of
from ..layers.selection import best_pairs, pairs_of, top_k
from ..losses.mask import MaskPredictions
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


def box3d_instances(
    logits: Tensor,
    codes: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    k: int,
    kept_range: Tensor,
) -> list[Instances]:
    """Makes `Instances` of the k best (query, class) pairs of each sample.

    Args:
        logits: (B, N, H).
        codes: (B, N, 10), see layers/box3d_ops.py.
        kept_range: (2, 3) the lowest and the highest corner in metres; boxes whose centre is
            beyond it are left out.

    Returns:
        per sample, `pred_boxes3d` (k', 9), `scores` and `pred_classes`, best first.
    """
    query, classes, scores = pairs_of(logits.sigmoid(), k)
    boxes = decode_boxes(codes.gather(1, query[..., None].expand(-1, -1, codes.shape[-1])))
    low, high = kept_range.unbind(0)
    inside = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1)
    results = []
    for b, size in enumerate(image_sizes):
        instances = Instances(size)
        instances.pred_boxes3d = boxes[b][inside[b]]
        instances.scores = scores[b][inside[b]]
        instances.pred_classes = classes[b][inside[b]]
        results.append(instances)
    return results


def distinct(queries: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the different ones of queries (k,), and the place of each among them.

    In a trace they stay as they are: their number is another on every image.
    """
    if torch.jit.is_tracing():
        return queries, torch.arange(len(queries), device=queries.device)
    return queries.unique(return_inverse=True)


def mask_instances(
    predictions: MaskPredictions,
    image_sizes: Sequence[tuple[int, int]],
    output_sizes: Sequence[tuple[int, int]],
    k: int,
) -> list[Instances]:
    """Makes `Instances` of the k best (query, class) pairs of each image.

    Queries are chosen first, and their masks alone are computed. A score is the probability of the
    class times the mean probability of the mask's pixels, as in the official code.

    Args:
        image_sizes: (height, width) of each unpadded image.
        output_sizes: (height, width) that each image's masks are resized to.

    Returns:
        per image, `pred_masks` (k, height, width) bool, `pred_boxes` around them, `scores` and
        `pred_classes`, best first.
    """
    queries, classes, scores = best_pairs(predictions.logits[-1], k)
    results = []
    for b, sizes in enumerate(zip(image_sizes, output_sizes, strict=True)):
        chosen, place = distinct(queries[b])
        embeddings, features = predictions.embeddings[-1, b, chosen], predictions.features.value[b]
        masks, quality = masks_of(embeddings, features, predictions.stride, *sizes)
        final, order = (scores[b] * quality[place]).sort(descending=True, stable=True)
        masks = masks[place[order]]
        instances = Instances(sizes[1])
        instances.pred_masks = masks
        instances.pred_boxes = Boxes(boxes_around(masks))
        instances.scores = final
        instances.pred_classes = classes[b, order]
        results.append(instances)
    return results
