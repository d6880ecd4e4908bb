"""Costs and losses of boxes in space (PETR, Liu et al., ECCV 2022, Sec. 3.5; DETR3D's).

A cost is called on one image, ``cost(predictions, targets)`` with fields of (L, Q, .) and (T, .),
and returns (L, Q, T). A loss is called on the batch, ``loss(predictions, targets, matches)``, and
returns its sum per decoder layer, (L,).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..groups import QueryGroups
from ..structures import Matches, Predictions, Targets
from .classification import of_matched

MATCHED = 8  # the numbers of a code that are compared in the matching: all but the velocity


@dataclass
class Box3DTargets(Targets):
    """Objects with a class and a box in space."""

    codes: Tensor  # (T, 10), see layers/box3d_ops.py


@dataclass
class Box3DPredictions(Predictions):
    """Class logits and a box in space for every query."""

    codes: Tensor  # (L, B, Q, 10)


def code_cost(predictions: Box3DPredictions, targets: Box3DTargets) -> Tensor:
    """L1 distance between every predicted and every true code, without velocity, (L, Q, T)."""
    found, true = predictions.codes, targets.codes
    cost = found.new_zeros(*found.shape[:2], len(true))
    for i in range(MATCHED):  # (L, Q, T, 8) would take much memory
        cost += (found[..., i, None] - true[:, i]).abs()
    return cost


def code_loss(
    predictions: Box3DPredictions,
    targets: Box3DTargets,
    matches: Matches,
    *,
    velocity_weight: float,
) -> Tensor:
    """L1 distance of matched codes, summed over pairs and numbers, (L,).

    Objects with a number that is not finite, such as an unknown velocity, are left out.

    Args:
        velocity_weight: weight of the two numbers of the velocity; the others weigh 1.
    """
    true = targets.codes[matches.target]  # (L, M, 10)
    is_known = true.isfinite().all(-1, keepdim=True)
    difference = (of_matched(predictions.codes, matches) - true.nan_to_num()).abs() * is_known
    moving = velocity_weight * difference[..., MATCHED:].sum((1, 2))
    return difference[..., :MATCHED].sum((1, 2)) + moving


def of_this_process(counts: Sequence[int], groups: QueryGroups) -> float:
    """The divisor of PETR's class loss: its matches, not averaged over processes."""
    return groups.normalizer(sum(counts))
