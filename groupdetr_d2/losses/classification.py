"""Costs and losses of class logits: the sigmoid focal form (Deformable DETR, Sec. 4 and A.4).

A cost is called on one image, ``cost(predictions, targets)``, and returns (L, Q, T). A loss is
called on the batch, ``loss(predictions, targets, matches)``, and returns its sum per decoder layer,
(L,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import Matches, Predictions, Targets

ALPHA, GAMMA, EPS = 0.25, 2.0, 1e-8


def of_matched(x: Tensor, matches: Matches) -> Tensor:
    """Selects the matched queries, (L, B, Q, ...) -> (L, M, ...)."""
    layer = torch.arange(len(x), device=x.device)[:, None]
    return x[layer, matches.image, matches.query]


def focal_cost(predictions: Predictions, targets: Targets) -> Tensor:
    """Change of the focal loss if a query were assigned a target's class, (L, Q, T)."""
    p = predictions.logits[..., targets.labels].sigmoid()  # (L, Q, T)
    negative = (1 - ALPHA) * p**GAMMA * -(1 - p + EPS).log()
    positive = ALPHA * (1 - p) ** GAMMA * -(p + EPS).log()
    return positive - negative


def focal_loss(predictions: Predictions, targets: Targets, matches: Matches) -> Tensor:
    """Sigmoid focal loss over all queries and classes (Lin et al., ICCV 2017).

    Every logit is first counted as a negative; the few matched ones are then replaced.
    """
    logits = predictions.logits  # (L, B, Q, H)
    labels = targets.labels[matches.target]  # (L, M)
    matched = of_matched(logits, matches).gather(-1, labels[..., None])[..., 0]  # (L, M)
    as_positive = ALPHA * (-matched).sigmoid() ** GAMMA * F.softplus(-matched)
    change = (as_positive - _negative_focal(matched)).sum(1)
    return _negative_focal(logits).flatten(1).sum(1) + change


def _negative_focal(logits: Tensor) -> Tensor:
    return (1 - ALPHA) * logits.sigmoid() ** GAMMA * F.softplus(logits)
