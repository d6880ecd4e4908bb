"""DETR's transformer encoder on one flattened feature map (post-norm, no final norm)."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from ..layers import recompute
from ..layers.attention import MultiheadAttention
from ..layers.dropout import Dropout, ReluDropout
from ..structures import Memory


def build_ffn(
    d_model: int, dim_feedforward: int, dropout: float, activation: str = "relu"
) -> nn.Sequential:
    """(..., C) -> (..., C): linear, activation ("relu" or "prelu"), dropout, linear."""
    between = {
        "relu": lambda: ReluDropout(dropout),
        "prelu": lambda: nn.Sequential(nn.PReLU(), Dropout(dropout)),
    }[activation]()
    return nn.Sequential(
        nn.Linear(d_model, dim_feedforward), between, nn.Linear(dim_feedforward, d_model)
    )


class EncoderLayer(nn.Module):
    """Self-attention and FFN; padded positions are computed but never looked at."""

    def __init__(self, ffn: nn.Module, *, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, num_heads, dropout)
        self.ffn = ffn
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor, pos: Tensor, barred: Tensor | None) -> Tensor:
        """(B, S, C), (B, S, C) and bool (B, 1, 1, S) -> (B, S, C)."""
        features = self.norms[0](features + self.dropout(self.self_attn(features, pos, barred)))
        return self.norms[1](features + self.dropout(self.ffn(features)))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers.

    Args:
        make_ffn: builds a layer's feed-forward network.
        pos_scale: what a layer multiplies the positions by, as a function of the features that it
            reads (DAB-DETR); None leaves them.
        checkpointing: whether backward computes a layer anew instead of keeping its activations.
    """

    def __init__(
        self,
        num_layers: int,
        make_ffn: Callable[[], nn.Module],
        *,
        d_model: int,
        num_heads: int,
        dropout: float,
        pos_scale: nn.Module | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(make_ffn(), d_model=d_model, num_heads=num_heads, dropout=dropout)
            for _ in range(num_layers)
        )
        self.pos_scale = pos_scale
        self.checkpointing = checkpointing

    def forward(self, memory: Memory) -> Memory:
        """The memory with encoded features; its other fields stay."""
        mask = memory.padding_mask
        barred = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        features, pos = memory.features, memory.pos
        for layer in self.layers:
            scale = 1 if self.pos_scale is None else self.pos_scale(features)
            args = (features, pos * scale, barred)
            features = recompute.run(layer, *args, recompute=self.checkpointing)
        return replace(memory, features=features)
