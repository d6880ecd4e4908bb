"""Deformable DETR's encoder over several feature levels (post-norm)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..layers.dropout import Dropout
from ..layers.ms_deform_attn import MSDeformAttn
from ..structures import Memory


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and FFN."""

    def __init__(self, attention: MSDeformAttn, ffn: nn.Module, *, d_model: int, dropout: float):
        super().__init__()
        self.self_attn = attention
        self.ffn = ffn
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, memory: Memory, reference: Tensor) -> Tensor:
        """Updated features (B, S, C); `reference` is (B, S, levels, 2)."""
        features = memory.features
        update = self.self_attn(
            features + memory.pos, reference, features, memory.spatial_shapes, memory.padding_mask
        )
        features = self.norms[0](features + self.dropout(update))
        return self.norms[1](features + self.dropout(self.ffn(features)))


class DeformableEncoder(nn.Module):
    """A stack of deformable layers; what it returns has the level embedding in its positions."""

    def __init__(
        self,
        num_layers: int,
        make_ffn: Callable[[], nn.Module],
        *,
        d_model: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float,
    ):
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(num_levels, d_model))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                MSDeformAttn(d_model, num_heads, num_levels, num_points),
                make_ffn(),
                d_model=d_model,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def forward(self, memory: Memory) -> Memory:
        """The memory with encoded features, and positions that tell levels apart."""
        cells = torch.tensor([h * w for h, w in memory.spatial_shapes])
        level = torch.arange(len(cells)).repeat_interleave(cells).to(memory.pos.device)
        memory = replace(memory, pos=memory.pos + self.level_embedding[level])
        reference = cell_centers(memory)
        for layer in self.layers:
            memory = replace(memory, features=layer(memory, reference))
        return memory


def cell_centers(memory: Memory) -> Tensor:
    """Every cell's centre, relative to each level's padded map: (B, S, levels, 2), x before y."""
    extents = memory.valid_extents()  # (B, levels, 2)
    centers = []
    for i, (height, width) in enumerate(memory.spatial_shapes):
        y, x = torch.meshgrid(
            torch.arange(height, device=extents.device) + 0.5,
            torch.arange(width, device=extents.device) + 0.5,
            indexing="ij",
        )
        grid = torch.stack([x, y], -1).flatten(0, 1)  # (H*W, 2)
        centers.append(grid[None] / extents[:, i, None])  # relative to the valid part
    padded = extents.new_tensor([(w, h) for h, w in memory.spatial_shapes])
    ratios = extents / padded  # (B, levels, 2)
    return torch.cat(centers, 1)[:, :, None] * ratios[:, None]
