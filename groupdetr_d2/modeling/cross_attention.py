"""DETR's cross-attention: positions are added to queries and keys (Carion et al., ECCV 2020)."""

import torch.nn.functional as F
from torch import Tensor

from ..layers.attention import PackedAttention, attend
from ..structures import Memory, QueryPosition


class CrossAttention(PackedAttention):
    """Multi-head attention from queries to the memory; the reference is not read."""

    def forward(
        self, content: Tensor, position: QueryPosition, reference: Tensor, memory: Memory
    ) -> Tensor:
        """Returns the update (B, Q, C) of the content (B, Q, C)."""
        inputs = (content + position.pos, memory.features + memory.pos, memory.features)
        projections = zip(self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, *p) for x, p in zip(inputs, projections, strict=True))
        mask = memory.padding_mask
        attn_mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, self.num_heads, attn_mask, dropout))
