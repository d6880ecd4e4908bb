"""Conditional DETR (Meng et al., ICCV 2021, arXiv 2108.06152).

Content and position of a query are projected apart. Cross-attention concatenates them head by head,
so that a head can look for what stands at a place (the paper's Sec. 3.3).
"""

import torch
from torch import Tensor, nn

from ..layers.attention import attend
from ..layers.mlp import MLP
from ..layers.position_encoding import sine_embedding
from ..modeling.box_predictor import build_box_predictor
from ..modeling.decoder import Decoder, DecoderLayer
from ..modeling.encoder import build_ffn, build_transformer_encoder
from ..modeling.head import DETRHead, build_groups
from ..modeling.neck import build_neck
from ..modeling.queries import PositionQueries
from ..registry import VARIANT_REGISTRY
from ..structures import Memory, Queries, QueryPosition


class ConditionalSelfAttention(nn.Module):
    """Self-attention with separate projections of content and position."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q_content, self.k_content = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.q_pos, self.k_pos = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.v, self.out_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, pos: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Returns the update (B, length, C); `attn_mask` is (length, length) or None."""
        q = self.q_content(content) + self.q_pos(pos)
        k = self.k_content(content) + self.k_pos(pos)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, self.v(content), self.num_heads, attn_mask, dropout))


class ConditionalCrossAttention(nn.Module):
    """Cross-attention whose queries and keys are [content | position], head by head."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, *, first_layer: bool):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q_content, self.k_content = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.q_pos = nn.Linear(d_model, d_model) if first_layer else None
        self.q_sine, self.k_pos = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.v, self.out_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, content: Tensor, position: QueryPosition, reference: Tensor, memory: Memory
    ) -> Tensor:
        """Returns the update (B, Q, C); keys are projected once for the queries of all groups."""
        q, k = self.queries_and_keys(content, position, memory)
        mask = memory.padding_mask
        attn_mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        dropout = self.dropout if self.training else 0.0
        v = self.v(memory.features)
        return self.out_proj(attend(q, k, v, self.num_heads, attn_mask, dropout))

    def queries_and_keys(
        self, content: Tensor, position: QueryPosition, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Returns (B, Q, 2C) and (B, S, 2C), [content | position] head by head."""
        q, k, k_pos = (
            self.q_content(content),
            self.k_content(memory.features),
            self.k_pos(memory.pos),
        )
        if self.q_pos is not None:  # content is still empty: lend it the position
            q, k = q + self.q_pos(position.pos), k + k_pos
        q = self._concat_per_head(q, self.q_sine(position.sine))
        return q, self._concat_per_head(k, k_pos)

    def _concat_per_head(self, content: Tensor, pos: Tensor) -> Tensor:
        content, pos = (x.unflatten(-1, (self.num_heads, -1)) for x in (content, pos))
        return torch.cat([content, pos], dim=-1).flatten(-2)


class ConditionalQueryPosition(nn.Module):
    """The spatial query: the reference point's sine embedding, scaled by the content."""

    def __init__(self, d_model: int):
        super().__init__()
        self.num_feats = d_model // 2
        self.query_scale = MLP(d_model, d_model, d_model, 2)

    def forward(self, layer: int, queries: Queries, memory: Memory) -> QueryPosition:
        """Scales by the un-normed content, from the second layer on."""
        sine = sine_embedding(queries.reference[..., :2], self.num_feats)  # (B, Q, C)
        if layer > 0:
            sine = sine * self.query_scale(queries.content)
        assert queries.pos is not None
        return QueryPosition(queries.pos, sine.to(queries.content.dtype))


def build_conditional_layer(
    layer: int, ffn: nn.Module, *, d_model: int, num_heads: int, dropout: float
) -> DecoderLayer:
    """Builds decoder layer number `layer`."""
    return DecoderLayer(
        ConditionalSelfAttention(d_model, num_heads, dropout),
        ConditionalCrossAttention(d_model, num_heads, dropout, first_layer=layer == 0),
        ffn,
        d_model=d_model,
        dropout=dropout,
    )


@VARIANT_REGISTRY.register()
def conditional_detr(cfg, backbone_shape) -> DETRHead:
    """Builds Conditional DETR from MODEL.DETR.*."""
    detr = cfg.MODEL.DETR
    d_model, num_heads, dropout = detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT
    sizes = {"d_model": d_model, "num_heads": num_heads, "dropout": dropout}

    def make_ffn() -> nn.Module:
        return build_ffn(d_model, detr.DIM_FEEDFORWARD, dropout)

    encoder = build_transformer_encoder(cfg, make_ffn)
    decoder = Decoder(
        lambda i: build_conditional_layer(i, make_ffn(), **sizes),
        detr.DEC_LAYERS,
        ConditionalQueryPosition(d_model),
        nn.LayerNorm(d_model),
        refine=False,
        recompute=detr.RECOMPUTE,
    )
    queries = PositionQueries(build_groups(cfg), d_model)
    for part in (encoder, decoder, queries):
        part.reset_parameters()
    return DETRHead(
        neck=build_neck(cfg, backbone_shape),
        encoder=encoder,
        queries=queries,
        decoder=decoder,
        predictor=build_box_predictor(cfg, shared=True, eps=1e-5),
    )
