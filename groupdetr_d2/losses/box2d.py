"""Costs and losses of 2D detection (Deformable DETR's focal form of DETR's, Sec. 4 and A.4).

A cost is called on one image, ``cost(predictions, targets)`` with fields of (L, Q, .) and (T, .),
and returns (L, Q, T). A loss is called on the batch, ``loss(predictions, targets, matches)``, and
returns its sum per decoder layer, (L,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from ..structures import Matches, Predictions, Targets

ALPHA, GAMMA, EPS = 0.25, 2.0, 1e-8


def focal_cost(predictions: Predictions, targets: Targets) -> Tensor:
    """What it would change in the focal loss to call a query by a target's class."""
    p = predictions.logits[..., targets.labels].sigmoid()  # (L, Q, T)
    negative = (1 - ALPHA) * p**GAMMA * -(1 - p + EPS).log()
    positive = ALPHA * (1 - p) ** GAMMA * -(p + EPS).log()
    return positive - negative


def l1_cost(predictions: Predictions, targets: Targets) -> Tensor:
    """L1 distance of boxes; broadcasting is many times faster than `torch.cdist` with p=1."""
    return (predictions.boxes[..., None, :] - targets.boxes).abs().sum(-1)


def giou_cost(predictions: Predictions, targets: Targets) -> Tensor:
    """Negative generalized IoU."""
    boxes_xyxy = box_cxcywh_to_xyxy(predictions.boxes)[..., None, :]  # (L, Q, 1, 4)
    return -generalized_box_iou(boxes_xyxy, box_cxcywh_to_xyxy(targets.boxes))


def _matched(x: Tensor, matches: Matches) -> Tensor:
    """(L, B, Q, ...) -> the matched queries' (L, M, ...)."""
    layer = torch.arange(len(x), device=x.device)[:, None]
    return x[layer, matches.image, matches.query]


def focal_loss(predictions: Predictions, targets: Targets, matches: Matches) -> Tensor:
    """Sigmoid focal loss over all queries and classes (Lin et al., ICCV 2017).

    Every logit is first counted as a negative; the few matched ones are then replaced.
    """
    logits = predictions.logits  # (L, B, Q, H)
    labels = targets.labels[matches.target]  # (L, M)
    matched = _matched(logits, matches).gather(-1, labels[..., None])[..., 0]  # (L, M)
    as_positive = ALPHA * (-matched).sigmoid() ** GAMMA * F.softplus(-matched)
    change = (as_positive - _negative_focal(matched)).sum(1)
    return _negative_focal(logits).flatten(1).sum(1) + change


def _negative_focal(logits: Tensor) -> Tensor:
    return (1 - ALPHA) * logits.sigmoid() ** GAMMA * F.softplus(logits)


def l1_loss(predictions: Predictions, targets: Targets, matches: Matches) -> Tensor:
    """L1 distance of matched boxes."""
    difference = _matched(predictions.boxes, matches) - targets.boxes[matches.target]
    return difference.abs().sum((1, 2))


def giou_loss(predictions: Predictions, targets: Targets, matches: Matches) -> Tensor:
    """1 - generalized IoU of matched boxes."""
    boxes_xyxy = box_cxcywh_to_xyxy(_matched(predictions.boxes, matches))  # (L, M, 4)
    targets_xyxy = box_cxcywh_to_xyxy(targets.boxes[matches.target])
    return (1 - generalized_box_iou(boxes_xyxy, targets_xyxy)).sum(1)
