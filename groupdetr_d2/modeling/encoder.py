"""DETR's transformer encoder on one flattened feature map (post-norm, no final norm)."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from ..layers.attention import MultiheadAttention
from ..layers.dropout import Dropout, ReluDropout
from ..layers.initialisation import xavier_init
from ..layers.recompute import run_layer
from ..structures import Memory


def build_ffn(
    d_model: int, dim_feedforward: int, dropout: float, activation: str = "relu"
) -> nn.Sequential:
    """Builds a feed-forward network: linear, activation ("relu" or "prelu"), dropout, linear."""
    between = {
        "relu": lambda: ReluDropout(dropout),
        "prelu": lambda: nn.Sequential(nn.PReLU(), Dropout(dropout)),
    }[activation]()
    return nn.Sequential(
        nn.Linear(d_model, dim_feedforward), between, nn.Linear(dim_feedforward, d_model)
    )


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network; padded positions are computed but never read.

    Args:
        attention: called as ``attention(features, pos, attn_mask)``, returns an update (B, S, C).
        ffn: feed-forward network, (B, S, C) -> (B, S, C).
    """

    def __init__(self, attention: nn.Module, ffn: nn.Module, *, d_model: int, dropout: float):
        super().__init__()
        self.self_attn = attention
        self.ffn = ffn
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, features: Tensor, pos: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Returns updated features (B, S, C).

        Args:
            features, pos: (B, S, C).
            attn_mask: (B, 1, 1, S) bool, True on padding, or None.
        """
        update = self.self_attn(features, pos, attn_mask)
        features = self.norms[0](features + self.dropout(update))
        return self.norms[1](features + self.dropout(self.ffn(features)))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers.

    Args:
        make_layer: builds a layer.
        pos_scale: computes from the features that a layer reads what its positions are multiplied
            by (DAB-DETR); None leaves them unscaled.
        recompute: whether backward computes a layer anew instead of keeping its activations.
    """

    def __init__(
        self,
        make_layer: Callable[[], nn.Module],
        num_layers: int,
        *,
        pos_scale: nn.Module | None = None,
        recompute: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(make_layer() for _ in range(num_layers))
        self.pos_scale = pos_scale
        self.recompute = recompute

    def reset_parameters(self) -> None:
        """Initialises the layers and `pos_scale` as the official codes do."""
        xavier_init(self)

    def forward(self, memory: Memory) -> Memory:
        """Returns the memory with encoded features; its other fields stay."""
        mask = memory.padding_mask
        attn_mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        features, pos = memory.features, memory.pos
        for layer in self.layers:
            scale = 1 if self.pos_scale is None else self.pos_scale(features)
            args = (features, pos * scale, attn_mask)
            features = run_layer(layer, *args, recompute=self.recompute)
        return replace(memory, features=features)


def build_transformer_encoder(
    cfg, make_ffn: Callable[[], nn.Module], pos_scale: nn.Module | None = None
) -> TransformerEncoder:
    """Builds DETR's encoder from MODEL.DETR.*.

    Args:
        make_ffn: builds the feed-forward network of a layer.
        pos_scale: see :class:`TransformerEncoder`.
    """
    detr = cfg.MODEL.DETR

    def make_layer() -> EncoderLayer:
        ffn = make_ffn()  # ahead of the attention, so that a seed gives the weights it always gave
        attention = MultiheadAttention(detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT)
        return EncoderLayer(attention, ffn, d_model=detr.HIDDEN_DIM, dropout=detr.DROPOUT)

    return TransformerEncoder(
        make_layer, detr.ENC_LAYERS, pos_scale=pos_scale, recompute=detr.RECOMPUTE
    )
