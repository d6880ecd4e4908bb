"""Attention on a grid with decomposed relative positions (Li et al., 2022, MViTv2 and ViTDet)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a square table of positions (1, S * S, C) to a grid (1, H, W, C), bicubically."""
    side = round(table.shape[1] ** 0.5)
    grid = table.unflatten(1, (side, side))
    if size == (side, side):
        return grid
    resized = F.interpolate(grid.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def resize_line(table: Tensor, rows: int) -> Tensor:
    """Resizes a table of distances (S, C) to (rows, C), linearly."""
    if len(table) == rows:
        return table
    return F.interpolate(table.T[None], rows, mode="linear", align_corners=False)[0].T


def relative_positions(table: Tensor, length: int) -> Tensor:
    """Looks up the embedding of each pair of places on an axis.

    Args:
        table: embeddings (2 * S - 1, C) of the distances 1 - S to S - 1.
        length: places on the axis; with another number than S the table is resized linearly.

    Returns:
        (length, length, C), for each query's place the embeddings of the keys' places.
    """
    table = resize_line(table, 2 * length - 1)
    place = torch.arange(length, device=table.device)
    return table[place[:, None] - place[None, :] + length - 1]


def attend_on_grid(
    q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int], table_h: Tensor, table_w: Tensor
) -> Tensor:
    """Attends with logits q k / sqrt(D) + q R_h + q R_w, R being embeddings of relative positions.

    The additions are written as further channels: a query has its D products, scaled, then its
    logit for each row and for each column; a key has its D numbers, then ones at its own row and
    column. Kernels of attention then need no (HW, HW) bias, nor keep one for backward.

    Args:
        q, k, v: queries, keys and values (B, heads, HW, D).
        size: height H and width W of the grid.
        table_h, table_w: embeddings (., D) of vertical and horizontal distances.

    Returns:
        (B, heads, HW, D).
    """
    height, width = size
    grid = q.unflatten(2, size)
    rows = relative_positions(table_h, height).to(q.dtype)
    columns = relative_positions(table_w, width).to(q.dtype)
    row_logits = torch.einsum("bnhwd,hkd->bnhwk", grid, rows).flatten(2, 3)
    column_logits = torch.einsum("bnhwd,wkd->bnhwk", grid, columns).flatten(2, 3)
    channels = q.shape[-1]
    unused = -(channels + height + width) % 8  # kernels on a GPU take multiples of 8
    query = torch.cat([q * channels**-0.5, row_logits, column_logits], -1)
    ones = _ones_of_cells(size, k).expand(*k.shape[:2], -1, -1)
    key = torch.cat([k, ones], -1)
    query, key = F.pad(query, (0, unused)), F.pad(key, (0, unused))
    value = F.pad(v, (0, query.shape[-1] - channels))  # kernels take values as wide as keys alone
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :channels]


def _ones_of_cells(size: tuple[int, int], like: Tensor) -> Tensor:
    """Marks each cell's row and column: (HW, H + W)."""
    height, width = size
    rows = torch.eye(height, dtype=like.dtype, device=like.device)
    columns = torch.eye(width, dtype=like.dtype, device=like.device)
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], -1)
