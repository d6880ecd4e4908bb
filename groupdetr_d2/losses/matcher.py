"""Bipartite matching between queries and targets, inside each group."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..groups import QueryGroups
from ..structures import Matches

LAST = 1e9  # a cost above all others


@torch.no_grad()
def match_groups(costs: list[Tensor], groups: QueryGroups) -> Matches:
    """One-to-one assignment inside each group: each target is matched K times, once per group.

    All costs come to the host in one transfer, whatever L, K and B are. Costs that are not finite
    come last, and the matches name their images: the model's outputs are at fault, and the losses
    will be NaN. It is for the training to decide what to do about it, in every process alike.

    Args:
        costs: per image, (L, K*N, T of the image).
    """
    device = costs[0].device
    flat = torch.cat([cost.flatten() for cost in costs]).float().cpu().numpy()
    sizes = [cost.numel() for cost in costs]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    bad = [b for b, part in enumerate(parts) if not np.isfinite(part).all()]
    for b in bad:
        parts[b] = np.nan_to_num(parts[b], nan=LAST, posinf=LAST, neginf=LAST)
    images, queries, targets, first_target = [], [], [], 0
    for b, (part, cost) in enumerate(zip(parts, costs, strict=True)):
        num_layers, _, num_targets = cost.shape
        shape = (num_layers, groups.num_groups, groups.num_queries, num_targets)
        grouped = part.reshape(shape)  # (L, K, N, T)
        query, target = _assign(grouped, groups)  # (L, K*min(N, T)) each
        queries.append(query)
        targets.append(target + first_target)
        images.append(np.full(query.shape[1], b))
        first_target += num_targets
    indices = np.concatenate([np.concatenate(queries, 1), np.concatenate(targets, 1)])  # (2L, M)
    indices = np.concatenate([indices, np.concatenate(images)[None]])  # (2L + 1, M)
    indices = torch.from_numpy(indices.astype(np.int64)).to(device, non_blocking=True)
    query, target, image = indices.split([num_layers, num_layers, 1])
    return Matches(image[0], query, target, groups, non_finite_images=bad)


def _assign(costs: np.ndarray, groups: QueryGroups) -> tuple[np.ndarray, np.ndarray]:
    """Assigns costs (L, K, N, T); returns indices of queries 0 .. K*N-1 and targets, (L, M)."""
    queries, targets = [], []
    for layer in costs:
        pairs = [linear_sum_assignment(cost) for cost in layer]
        offset = zip(pairs, groups.offsets(), strict=True)
        queries.append(np.concatenate([query + first for (query, _), first in offset]))
        targets.append(np.concatenate([target for _, target in pairs]))
    return np.stack(queries), np.stack(targets)
