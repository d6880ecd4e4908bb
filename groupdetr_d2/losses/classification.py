"""Costs and losses of class logits.

The sigmoid focal form (Deformable DETR, Sec. 4 and A.4) and the softmax form with a class for "no
object" (DETR, Carion et al., ECCV 2020, Sec. 3.1).

A cost is called on one image, ``cost(predictions, targets)``, and returns (L, Q, T). A loss is
called on the batch, ``loss(predictions, targets, matches)``, and returns its sum per decoder layer,
(L,).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..groups import QueryGroups
from ..structures import Matches, Predictions, Targets

ALPHA, GAMMA, EPS = 0.25, 2.0, 1e-8


def of_matched(x: Tensor, matches: Matches) -> Tensor:
    """Selects the matched queries, (L, B, Q, ...) -> (L, M, ...)."""
    layer = torch.arange(len(x), device=x.device)[:, None]
    return x[layer, matches.image, matches.query]


def focal_cost(predictions: Predictions, targets: Targets, *, eps: float = EPS) -> Tensor:
    """Change of the focal loss if a query were assigned a target's class, (L, Q, T).

    Args:
        eps: added to probabilities ahead of their logarithm; it is the official code's.
    """
    p = predictions.logits[..., targets.labels].sigmoid()  # (L, Q, T)
    negative = (1 - ALPHA) * p**GAMMA * -(1 - p + eps).log()
    positive = ALPHA * (1 - p) ** GAMMA * -(p + eps).log()
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


def softmax_cost(predictions: Predictions, targets: Targets) -> Tensor:
    """Negative probability of every target's class, (L, Q, T)."""
    return -predictions.logits.softmax(-1)[..., targets.labels]


def softmax_loss(
    predictions: Predictions, targets: Targets, matches: Matches, *, no_object_weight: float
) -> Tensor:
    """Cross-entropy of all queries, (L,); those without a match belong to the last class.

    Args:
        no_object_weight: weight of the last class; the others weigh 1.
    """
    logits = predictions.logits  # (L, B, Q, H + 1)
    last = logits.shape[-1] - 1
    labels = torch.full(logits.shape[:3], last, device=logits.device)
    layer = torch.arange(len(logits), device=logits.device)[:, None]
    labels[layer, matches.image, matches.query] = targets.labels[matches.target]
    weights = logits.new_ones(last + 1)
    weights[last] = no_object_weight
    values = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weights, reduction="none")
    return values.view(len(logits), -1).sum(1)


def weight_of_queries(
    counts: Sequence[int], groups: QueryGroups, *, no_object_weight: float
) -> float:
    """The sum of the weights of :func:`softmax_loss`, with so many targets in each image."""
    matched = groups.num_matches(counts)
    return matched + no_object_weight * (len(counts) * groups.bank_size - matched)
