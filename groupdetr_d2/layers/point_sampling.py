"""Bilinear values of maps at points."""

import torch.nn.functional as F
from torch import Tensor


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Samples maps (M, C, h, w) at points (M, P, 2) to (M, C, P).

    Points are x, y in [0, 1] of the map, whose corners are not aligned with those of its cells; it
    is zero beyond its border.
    """
    if not len(maps):  # grid_sample takes no empty batch
        return maps.sum((2, 3))[..., None] + points.new_zeros(*maps.shape[:2], points.shape[1])
    grid = 2 * points[:, None] - 1  # (M, 1, P, 2)
    return F.grid_sample(maps, grid, align_corners=False)[:, :, 0]
