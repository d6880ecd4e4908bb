"""Multi-head attention on projected inputs, and DETR's self- and cross-attention.

A self-attention is called on folded queries (groups.py), and knows nothing of groups.
"""

from collections.abc import Iterator, Sequence

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

    PyTorch has no fused CPU kernel for attention with dropout. Backward finds a tile's weights
    again, from the logarithms of their sums, and its mask, from the seed, so that memory does not
    grow with queries x keys: a tile has 4 MiB.
    """

    @staticmethod
    def forward(ctx, q, k, v, attn_mask, p):
        q = q * q.shape[-1] ** -0.5
        ctx.p, ctx.seed = p, draw_seed()
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype)
        largest, totals = torch.empty(2, *q.shape[:-1], 1, dtype=_wide_dtype(q))
        of_queries, of_keys = (q, largest, totals, out), (k.mT.contiguous(), v)
        for tile in _tiles(of_queries, of_keys, attn_mask, p, ctx.seed):
            weights, keep, (_, largest_, total_, out_), (_, v_) = tile
            torch.amax(weights, -1, keepdim=True, out=largest_)
            torch.sum(weights.sub_(largest_).exp_(), -1, keepdim=True, out=total_)
            out_.copy_(torch.bmm(weights.mul_(keep).div_(total_).to(v.dtype), v_))
        ctx.save_for_backward(q, k, v, attn_mask, out, totals.log_().add_(largest))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, attn_mask, out, log_sums = ctx.saved_tensors
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype) for x in (q, k.mT, v.mT))
        shift = (grad.to(log_sums.dtype) * out).sum(-1, keepdim=True).neg_()
        of_queries = q, grad, log_sums, shift, dq
        of_keys = k.mT.contiguous(), k, v.mT.contiguous(), dk, dv
        for tile in _tiles(of_queries, of_keys, attn_mask, ctx.p, ctx.seed):
            weights, keep, (q_, grad_, log_sum, shift_, dq_), (_, k_, v_, dk_, dv_) = tile
            weights.sub_(log_sum).exp_()
            d_weights = torch.bmm(grad_, v_).to(weights.dtype)
            d_scores = torch.addcmul(shift_, d_weights, keep, out=d_weights).mul_(weights)
            d_scores = d_scores.to(q.dtype)
            dv_.baddbmm_(grad_.mT, weights.mul_(keep).to(v.dtype))
            dk_.baddbmm_(q_.mT, d_scores)
            dq_.baddbmm_(d_scores, k_)
        return dq.mul_(q.shape[-1] ** -0.5), dk.mT, dv.mT, None, None


def _wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of exponentials and their sums: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def _tiles(
    of_queries: Sequence[Tensor],
    of_keys: Sequence[Tensor],
    attn_mask: Tensor | None,
    p: float,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]]:
    """Yields a tile's scores, its mask of dropout, and the part of each tensor that belongs to it.

    Args:
        of_queries: (B, heads, queries, any) each, contiguous if they are written to; the first are
            the queries, scaled.
        of_keys: tensors of (B, heads) pairs; the first are the keys, (B, heads, Cq, keys), the
            layout in which products are the fastest.
    """
    generator, dtype = mask_generator(seed), _wide_dtype(of_queries[0])
    batch, heads, queries, _ = of_queries[0].shape
    pair_step, row_step = _tile_size(queries, of_keys[0].shape[3])
    of_queries, of_keys = ([x.flatten(0, 1) for x in side] for side in (of_queries, of_keys))
    if attn_mask is not None:
        is_masked = attn_mask.expand(batch, heads, *attn_mask.shape[-2:]).flatten(0, 1)
        of_queries.append(is_masked.expand(-1, queries, -1))
    parts = zip(_split(of_queries, pair_step, 0), _split(of_keys, pair_step, 0), strict=True)
    for query_parts, key_parts in parts:
        for rows in _split(query_parts, row_step, 1):
            scores = torch.bmm(rows[0], key_parts[0]).to(dtype)
            if attn_mask is not None:
                rows, is_masked = rows[:-1], rows[-1]
                scores.masked_fill_(is_masked, float("-inf"))
            yield scores, draw_mask(scores.shape, p, generator).to(dtype), rows, key_parts


def _split(tensors: Sequence[Tensor], size: int, dim: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(x.split(size, dim) for x in tensors), strict=True)


def _tile_size(queries: int, keys: int) -> tuple[int, int]:
    """Returns the pairs and the queries of a tile, which has at most CHUNK weights if it can."""
    rows = max(1, min(queries, CHUNK // (PAIRS * keys)))
    tiles_of_pair = -(-queries // rows)
    return max(PAIRS, CHUNK // (queries * keys)), -(-queries // tiles_of_pair)


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
