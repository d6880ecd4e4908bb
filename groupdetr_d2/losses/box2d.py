"""Costs and losses of 2D boxes (DETR, Carion et al., ECCV 2020, Sec. 3.1).

A cost is called on one image, ``cost(predictions, targets)`` with fields of (L, Q, .) and (T, .),
and returns (L, Q, T). A loss is called on the batch, ``loss(predictions, targets, matches)``, and
returns its sum per decoder layer, (L,).
"""

from dataclasses import dataclass

from torch import Tensor

from ..layers.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from ..structures import Matches, Predictions, Targets
from .classification import of_matched


@dataclass
class BoxTargets(Targets):
    """Objects with a class and a box."""

    boxes: Tensor  # (T, 4) cxcywh in [0, 1] of the unpadded image


@dataclass
class BoxPredictions(Predictions):
    """Class logits and a box for every query."""

    boxes: Tensor  # (L, B, Q, 4) cxcywh in [0, 1] of the unpadded image


def l1_cost(predictions: BoxPredictions, targets: BoxTargets) -> Tensor:
    """L1 distance between every predicted and every true box, (L, Q, T).

    Broadcasting is many times faster than `torch.cdist` with p=1.
    """
    return (predictions.boxes[..., None, :] - targets.boxes).abs().sum(-1)


def giou_cost(predictions: BoxPredictions, targets: BoxTargets) -> Tensor:
    """Negative generalized IoU of every predicted and every true box, (L, Q, T)."""
    boxes_xyxy = box_cxcywh_to_xyxy(predictions.boxes)[..., None, :]  # (L, Q, 1, 4)
    return -generalized_box_iou(boxes_xyxy, box_cxcywh_to_xyxy(targets.boxes))


def l1_loss(predictions: BoxPredictions, targets: BoxTargets, matches: Matches) -> Tensor:
    """L1 distance of matched boxes, summed over pairs and coordinates, (L,)."""
    difference = of_matched(predictions.boxes, matches) - targets.boxes[matches.target]
    return difference.abs().sum((1, 2))


def giou_loss(predictions: BoxPredictions, targets: BoxTargets, matches: Matches) -> Tensor:
    """Sums 1 - generalized IoU of matched boxes over pairs, (L,)."""
    boxes_xyxy = box_cxcywh_to_xyxy(of_matched(predictions.boxes, matches))  # (L, M, 4)
    targets_xyxy = box_cxcywh_to_xyxy(targets.boxes[matches.target])
    return (1 - generalized_box_iou(boxes_xyxy, targets_xyxy)).sum(1)
