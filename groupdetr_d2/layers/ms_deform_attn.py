"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021) in plain torch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .position_encoding import at_least_float32


def sample_levels(
    value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> Tensor:
    """Bilinear samples of all levels, weighed and added up.

    Args:
        value: (B, S, heads, C / heads), levels flattened into S one after another.
        shapes: (height, width) of each level.
        locations: (B, Q, heads, levels, points, 2), x and y in [0, 1] of a level's padded map.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, C)
    """
    batch, num_queries, heads = locations.shape[:3]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*heads, Q, levels, points, 2)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B*heads, 1, Q, levels, points)
    total = 0
    parts = value.split([h * w for h, w in shapes], dim=1)
    for i, (part, (height, width)) in enumerate(zip(parts, shapes, strict=True)):
        level = part.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width)
        samples = F.grid_sample(level, grid[:, :, i].to(level.dtype), align_corners=False)
        total = total + (samples * weights[:, :, :, i].to(level.dtype)).sum(-1)
    return total.reshape(batch, -1, num_queries).transpose(1, 2)  # (B*heads, C/heads, Q) before


class MSDeformAttn(nn.Module):
    """Each query looks at a few learned points around its reference, in every level."""

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.shape = (num_heads, num_levels, num_points)
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(d_model, 2 * samples)
        self.attention_weights = nn.Linear(d_model, samples)
        self.value_proj, self.output_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Points start on a ray a head, farther out with their number; weights start equal."""
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
        """
        Args:
            query: (B, Q, C).
            reference: (B, Q, levels, 2) points relative to each level's padded map.
            features: (B, S, C) of all levels.
            padding_mask: (B, S), True where a value counts as zero.

        Returns:
            (B, Q, C)
        """
        heads, levels, points = self.shape
        value = self.value_proj(features)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0)
        offsets = at_least_float32(self.sampling_offsets(query))
        offsets = offsets.unflatten(-1, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * points))
        weights = weights.softmax(-1).unflatten(-1, (levels, points))
        cells = reference.new_tensor([(w, h) for h, w in shapes])[:, None]  # (levels, 1, 2)
        locations = reference[:, :, None, :, None] + offsets / cells
        sampled = sample_levels(value.unflatten(-1, (heads, -1)), shapes, locations, weights)
        return self.output_proj(sampled)
