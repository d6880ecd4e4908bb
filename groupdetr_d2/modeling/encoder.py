"""DETR's transformer encoder on one flattened feature map (post-norm, no final norm)."""

from dataclasses import replace

from torch import Tensor, nn

from ..layers.attention import MultiheadAttention
from ..layers.dropout import Dropout, ReluDropout
from ..structures import Memory


def build_relu_ffn(d_model: int, dim_feedforward: int, dropout: float) -> nn.Sequential:
    """(..., C) -> (..., C): linear, ReLU, dropout, linear."""
    return nn.Sequential(
        nn.Linear(d_model, dim_feedforward),
        ReluDropout(dropout),
        nn.Linear(dim_feedforward, d_model),
    )


class EncoderLayer(nn.Module):
    """Self-attention and FFN; padded positions are computed but never looked at."""

    def __init__(self, d_model: int, num_heads: int, dim_feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.ffn = build_relu_ffn(d_model, dim_feedforward, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor, pos: Tensor, barred: Tensor | None) -> Tensor:
        """(B, S, C), (B, S, C) and bool (B, 1, 1, S) -> (B, S, C)."""
        features = self.norms[0](features + self.dropout(self.self_attn(features, pos, barred)))
        return self.norms[1](features + self.dropout(self.ffn(features)))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(
        self,
        num_layers: int,
        *,
        d_model: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, num_heads, dim_feedforward, dropout) for _ in range(num_layers)
        )

    def forward(self, memory: Memory) -> Memory:
        """The memory with encoded features; its other fields stay."""
        mask = memory.padding_mask
        barred = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        features = memory.features
        for layer in self.layers:
            features = layer(features, memory.pos, barred)
        return replace(memory, features=features)
