"""Multi-head attention on projected inputs, and DETR's self- and cross-attention.

A self-attention is called on folded queries (groups.py), and knows nothing of groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import draw_mask, draw_seed, mask_generator

PAIRS = 2  # (image, head) pairs of a tile at least, for as many threads
CHUNK = 2**20  # attention weights held at a time by attention with dropout on a CPU


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    attn_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Computes multi-head attention by `implementation`.

    Args:
        q, k: (B, queries, Cq) and (B, keys, Cq), projected.
        v: (B, keys, Cv), projected; Cv may differ from Cq.
        attn_mask: bool, True where a query may not attend, broadcastable to (B, heads, queries,
            keys).
        dropout: probability of dropping an attention weight.

    Returns:
        (B, queries, Cv)
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = implementation(q, k, v, attn_mask, dropout)
    return out.transpose(1, 2).flatten(2)  # (B, queries, Cv)


def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout: float) -> Tensor:
    """Attends in (B, heads, length, C / heads) without a map of queries x keys in memory."""
    allowed = None if attn_mask is None else ~attn_mask
    if q.device.type != "cpu":
        return _device_attention(q, k, v, allowed, dropout)
    if dropout:
        return _DropoutAttention.apply(q, k, v, attn_mask, dropout)
    return _cpu_attention(q, k, v, allowed)


def with_maps(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout: float) -> Tensor:
    """Attends as the definition reads, which keeps several maps of queries x keys."""
    return F.dropout(_softmax_weights(q, k, attn_mask), dropout) @ v


def attention_maps(q: Tensor, k: Tensor, num_heads: int, attn_mask: Tensor | None = None) -> Tensor:
    """Computes the attention weights of :func:`attend` for figures, (B, heads, queries, keys)."""
    q, k = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k))
    return _softmax_weights(q, k, attn_mask)


def _softmax_weights(q: Tensor, k: Tensor, attn_mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(attn_mask, -torch.inf)
    return scores.softmax(-1)


implementation = fused  # `analyze memory` measures the other one


def _device_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float
) -> Tensor:
    """Attends on a GPU; masked keys are padded to a multiple of 8, or a full mask would be made."""
    missing = -k.shape[-2] % 8
    if allowed is not None and missing:
        k, v = F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing))
        allowed = F.pad(allowed, (0, missing))  # False: the added keys are attn_mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)


def _cpu_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """Attends on a CPU; values are padded to the head size of queries, as the kernel needs."""
    missing = q.shape[-1] - v.shape[-1]
    out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, missing)), attn_mask=allowed)
    return out[..., : v.shape[-1]]


class _DropoutAttention(torch.autograd.Function):
    """softmax(q k^T) with dropout, times v, a tile of the attention weights at a time.

    PyTorch has no fused CPU kernel for attention with dropout. Backward computes a tile's weights
    again and finds its mask again, from the seed, so that memory does not grow with queries x keys:
    a tile has 4 MiB.
    """

    @staticmethod
    def forward(ctx, q, k, v, attn_mask, p):
        q = q * q.shape[-1] ** -0.5
        ctx.save_for_backward(q, k, v, attn_mask)
        ctx.p, ctx.seed = p, draw_seed()
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype)
        out_of, v_of = out.flatten(0, 1), v.flatten(0, 1)  # a copy of v
        for pairs, rows, weights, keep in _weight_tiles(q, k, attn_mask, p, ctx.seed):
            out_of[pairs, rows] = torch.bmm(weights.mul_(keep).to(v.dtype), v_of[pairs])
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, attn_mask = ctx.saved_tensors
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
        grad_of, q_of, k_of, v_of, dq_of, dk_of, dv_of = (
            x.flatten(0, 1) for x in (grad, q, k, v, dq, dk, dv)
        )
        for pairs, rows, weights, keep in _weight_tiles(q, k, attn_mask, ctx.p, ctx.seed):
            grad = grad_of[pairs, rows]
            d_weights = torch.bmm(grad, v_of[pairs].transpose(1, 2)).to(weights.dtype).mul_(keep)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_scores = d_scores.to(q.dtype)
            dq_of[pairs, rows] = torch.bmm(d_scores, k_of[pairs])
            dk_of[pairs].baddbmm_(d_scores.transpose(1, 2), q_of[pairs, rows])
            dv_of[pairs].baddbmm_(weights.mul_(keep).to(grad.dtype).transpose(1, 2), grad)
        return dq.mul_(q.shape[-1] ** -0.5), dk, dv, None, None


def _weight_tiles(q: Tensor, k: Tensor, attn_mask: Tensor | None, p: float, seed: int):
    """Yields slices of (image, head) pairs and of queries, their softmax weights, and the mask.

    The queries are scaled already.
    """
    generator = mask_generator(seed)
    (_, heads, queries, _), keys = q.shape, k.shape[2]
    q, k = q.flatten(0, 1), k.flatten(0, 1)  # (B*heads, length, C / heads)
    for pairs, rows in _tiles(len(q), queries, keys):
        scores = torch.bmm(q[pairs, rows], k[pairs].mT)
        scores = scores.to(torch.promote_types(q.dtype, torch.float32))
        if attn_mask is not None:
            images = torch.arange(len(q))[pairs] // heads
            scores.masked_fill_(_rows_of_mask(attn_mask, images, rows), float("-inf"))
        keep = draw_mask(scores.shape, p, generator)
        yield pairs, rows, torch.softmax(scores, -1), keep


def _tiles(pairs: int, queries: int, keys: int):
    """Yields slices of pairs and of queries with at most CHUNK weights between them."""
    pair_step = max(PAIRS, CHUNK // (queries * keys))
    row_step = max(1, min(queries, CHUNK // (PAIRS * keys)))
    for start in range(0, pairs, pair_step):
        for row in range(0, queries, row_step):
            yield slice(start, start + pair_step), slice(row, row + row_step)


def _rows_of_mask(attn_mask: Tensor, images: Tensor, rows: slice) -> Tensor:
    """Selects the mask of a tile from (queries, keys) or (B, 1, 1, keys)."""
    return attn_mask[rows] if attn_mask.dim() == 2 else attn_mask[:, 0][images]


class PackedAttention(nn.Module):
    """The parameters of an attention whose query, key and value projections are one matrix.

    So it is in the official codes and in `torch.nn.MultiheadAttention`; the three share the bound
    of Xavier initialisation.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)


class MultiheadAttention(PackedAttention):
    """DETR's self-attention: position is added to queries and keys before their projection."""

    def forward(self, content: Tensor, pos: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Returns the update (B, length, C).

        Args:
            content, pos: (B, length, C).
            attn_mask: bool, True where a query may not attend, broadcastable to
                (B, heads, length, length).
        """
        d_model = content.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        qk = F.linear(content + pos, weight[: 2 * d_model], bias[: 2 * d_model])
        v = F.linear(content, weight[2 * d_model :], bias[2 * d_model :])
        q, k = qk.chunk(2, dim=-1)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, self.num_heads, attn_mask, dropout))
