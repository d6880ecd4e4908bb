"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021)."""

import math

import torch
from torch import Tensor, nn

from ..structures import sizes_of
from .deform_sampling import sample_levels
from .initialisation import SelfInitialised
from .position_encoding import at_least_float32


class MSDeformAttn(SelfInitialised):
    """Attention of each query to a few learned points around its reference, in every level."""

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.shape = (num_heads, num_levels, num_points)
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(d_model, 2 * samples)
        self.attention_weights = nn.Linear(d_model, samples)
        self.value_proj, self.output_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts the points of a head on a ray, farther out with their number; equal weights."""
        heads, levels, points = self.shape
        angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)  # (heads, 2)
        rays = rays / rays.abs().max(-1, keepdim=True).values
        steps = torch.arange(1, points + 1, dtype=torch.float32)[:, None]
        bias = (rays[:, None, None] * steps).expand(heads, levels, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        features: Tensor,
        shapes: tuple[tuple[int, int], ...],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Attends, and returns the update (B, Q, C).

        Args:
            query: (B, Q, C).
            reference: (B, Q, levels, 2) points or (B, Q, levels, 4) boxes, cxcywh, relative to
                each level's padded map. Offsets are in cells around a point, and in units that
                reach from a box's centre to its border in as many steps as there are points.
            features: (B, S, C) of all levels.
            padding_mask: (B, S), True where a value counts as zero.

        Returns:
            (B, Q, C)
        """
        value = self.value_proj(features)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0)
        locations, weights = self.sampling_points(query, reference, shapes)
        value = value.unflatten(-1, (self.shape[0], -1))
        return self.output_proj(sample_levels(value, shapes, locations, weights))

    def sampling_points(
        self, query: Tensor, reference: Tensor, shapes: tuple[tuple[int, int], ...]
    ) -> tuple[Tensor, Tensor]:
        """Computes the points that each query samples, and their weights.

        Args:
            query, reference, shapes: see :meth:`forward`.

        Returns:
            locations (B, Q, heads, levels, points, 2), x and y relative to each level's padded map,
            and weights (B, Q, heads, levels, points), which add up to 1 in each head.
        """
        heads, levels, points = self.shape
        offsets = at_least_float32(self.sampling_offsets(query))
        offsets = offsets.unflatten(-1, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * points))
        weights = weights.softmax(-1).unflatten(-1, (levels, points))
        reference = at_least_float32(reference)[:, :, None, :, None]  # (B, Q, 1, levels, 1, .)
        if reference.shape[-1] == 2:
            unit = 1 / sizes_of(shapes, reference)[:, None]  # (levels, 1, 2)
        else:
            unit = reference[..., 2:] * (0.5 / points)
        return reference[..., :2] + offsets * unit, weights
