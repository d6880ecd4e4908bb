"""Deformable DETR's encoder over several feature levels (post-norm)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..layers.dropout import Dropout
from ..layers.initialisation import xavier_init
from ..layers.ms_deform_attn import MSDeformAttn
from ..layers.recompute import run_layer
from ..structures import Memory
from .encoder import build_ffn
from .reference_points import cell_centers, on_padded_maps


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network."""

    def __init__(self, attention: MSDeformAttn, ffn: nn.Module, *, d_model: int, dropout: float):
        super().__init__()
        self.self_attn = attention
        self.ffn = ffn
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, memory: Memory, reference: Tensor) -> Tensor:
        """Returns updated features (B, S, C); `reference` is (B, S, levels, 2)."""
        features = memory.features
        update = self.self_attn(
            features + memory.pos, reference, features, memory.spatial_shapes, memory.padding_mask
        )
        features = self.norms[0](features + self.dropout(update))
        return self.norms[1](features + self.dropout(self.ffn(features)))


class DeformableEncoder(nn.Module):
    """A stack of deformable layers; the positions it returns contain the level embedding.

    Args:
        recompute: whether backward computes a layer anew instead of keeping its activations.
    """

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
        recompute: bool = False,
    ):
        super().__init__()
        self.recompute = recompute
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

    def reset_parameters(self) -> None:
        """Initialises the layers as the official code does; the level embedding stays N(0, 1)."""
        xavier_init(self.layers)

    def forward(self, memory: Memory) -> Memory:
        """Returns the memory with encoded features, and positions that tell levels apart."""
        sizes = [h * w for h, w in memory.spatial_shapes]
        parts = zip(memory.pos.split(sizes, 1), self.level_embedding, strict=True)
        memory = replace(memory, pos=torch.cat([pos + level for pos, level in parts], 1))
        reference = on_padded_maps(cell_centers(memory), memory)
        for layer in self.layers:
            features = run_layer(layer, memory, reference, recompute=self.recompute)
            memory = replace(memory, features=features)
        return memory


def build_deformable_encoder(
    cfg, make_ffn: Callable[[], nn.Module] | None = None
) -> DeformableEncoder:
    """Builds the encoder from MODEL.DETR.*, with the levels of IN_FEATURES and EXTRA_LEVELS.

    Args:
        make_ffn: builds the feed-forward network of a layer, if not MODEL.DETR.DIM_FEEDFORWARD.
    """
    detr = cfg.MODEL.DETR
    return DeformableEncoder(
        detr.ENC_LAYERS,
        make_ffn or (lambda: build_ffn(detr.HIDDEN_DIM, detr.DIM_FEEDFORWARD, detr.DROPOUT)),
        d_model=detr.HIDDEN_DIM,
        num_heads=detr.NHEADS,
        num_levels=len(detr.IN_FEATURES) + detr.EXTRA_LEVELS,
        num_points=detr.NUM_POINTS,
        dropout=detr.DROPOUT,
        recompute=detr.RECOMPUTE,
    )
