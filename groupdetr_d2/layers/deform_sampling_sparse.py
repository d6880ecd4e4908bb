"""Deformable attention's sampling on a CPU, as products with a sparse matrix.

A row of the matrix is a query in one head: its bilinear samples are `4 * levels * points` weights
of cells. The output is the matrix times the values, the gradient of the values its transpose times
the gradient. Per sample only the position is kept for backward; the matrix is made anew.

Maps get a border of zeros a cell wide, row-major, so that a step over the border reads zeros (of
the next or the previous row, if need be) and nothing has to be masked.
"""

import warnings

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.autograd.function import once_differentiable

# said once for each process that uses sparse products
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
Shapes = tuple[tuple[int, int], ...]


def is_available() -> bool:
    """Whether PyTorch has sparse products on this CPU."""
    return torch.backends.mkl.is_available()


def sample_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Samples by sparse products; see :func:`.deform_sampling.sample_levels`."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    inputs = (x.to(dtype).contiguous() for x in (value, locations, weights))
    return _SparseSampling.apply(*inputs, shapes).to(value.dtype)


class _SparseSampling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, locations, weights, shapes):
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        out = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
        for b in range(len(value)):
            rows = _Rows(locations[b], weights[b], shapes)
            table = _pad(value[b], shapes)
            torch.mm(rows.matrix(len(table)), table, out=out[b].view(-1, value.shape[-1]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        value, locations, weights = saved = ctx.saved_tensors
        d_value, d_locations, d_weights = (torch.empty_like(x) for x in saved)
        for b in range(len(value)):
            rows = _Rows(locations[b], weights[b], ctx.shapes)
            table = _pad(value[b], ctx.shapes)
            d_out = grad[b].reshape(-1, value.shape[-1])
            d_value[b] = _unpad(rows.transposed_product(d_out, len(table)), value[b], ctx.shapes)
            d_locations[b], d_weights[b] = rows.gradients(d_out, table)
        return d_value, d_locations, d_weights, None


class _Rows:
    """The matrix of one image: rows (query, head), columns (padded cell, head).

    Args:
        locations, weights: (Q, heads, levels, points, 2) and (Q, heads, levels, points).
    """

    def __init__(self, locations: Tensor, weights: Tensor, shapes: Shapes):
        self.size = locations.new_tensor([(w, h) for h, w in shapes])[:, None]  # (levels, 1, 2)
        # in padded cells, from a cell before the border to one after the last row or column
        position = (locations * self.size).add_(1.5).clamp_(self.size.new_zeros(()), self.size + 2)
        cell = position.nan_to_num(0).int()
        self.fraction = position.sub_(cell)  # (Q, heads, levels, points, 2)
        self.weights = weights
        heads, tensor = weights.shape[1], torch.tensor
        width = tensor([w + 2 for _, w in shapes], dtype=torch.int32)[:, None]  # (levels, 1)
        first = tensor(_starts(shapes)[:-1], dtype=torch.int32)[:, None] - width - 1
        column = torch.addcmul(cell[..., 0], cell[..., 1], width).add_(first)
        column = column.mul_(heads).add_(torch.arange(heads, dtype=torch.int32)[:, None, None])
        step = tensor([0, 1], dtype=torch.int32) * heads
        corners = (width * step)[:, None, :, None] + step  # (levels, 1, 2, 2): y, x
        self.columns = column[..., None, None] + corners

    def coefficients(self) -> Tensor:
        """Computes the weights of corners, (Q, heads, levels, points, 2, 2), y before x."""
        x, y = self.fraction.unbind(-1)
        out = self.weights.new_empty(self.columns.shape)
        lower = self.weights * y
        for row, weight in enumerate((self.weights - lower, lower)):
            torch.mul(weight, x, out=out[..., row, 1])
            torch.sub(weight, out[..., row, 1], out=out[..., row, 0])
        return out

    def _starts_of_rows(self) -> Tensor:
        per_row = self.columns[0, 0].numel()
        return torch.arange(0, self.columns.numel() + 1, per_row, dtype=torch.int32)

    def _sparse(self, values: Tensor, num_columns: int) -> Tensor:
        starts = self._starts_of_rows()
        return torch.sparse_csr_tensor(
            starts,
            self.columns.view(-1),
            values.view(-1),
            (len(starts) - 1, num_columns),
            check_invariants=False,
        )

    def matrix(self, num_columns: int) -> Tensor:
        """Makes the sparse matrix (Q * heads, num_columns)."""
        return self._sparse(self.coefficients(), num_columns)

    def transposed_product(self, d_out: Tensor, num_columns: int) -> Tensor:
        """Multiplies with the transposed matrix, (num_columns, D), which scipy does unsorted."""
        parts = (self.coefficients(), self.columns, self._starts_of_rows())
        arrays = tuple(x.view(-1).numpy() for x in parts)
        matrix = csr_matrix(arrays, shape=(len(d_out), num_columns), copy=False)
        return torch.from_numpy(np.asarray(matrix.T @ d_out.numpy()))

    def gradients(self, d_out: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradients of locations and weights, in their shapes."""
        pattern = self._sparse(
            self.columns.new_zeros((), dtype=d_out.dtype).expand(self.columns.numel()).contiguous(),
            len(table),
        )
        d_corners = torch.sparse.sampled_addmm(pattern, d_out, table.t(), beta=0.0)
        d_corners = d_corners.values().view(self.columns.shape)
        x, y = self.fraction.unbind(-1)
        left, right = d_corners.unbind(-1)
        upper, lower = left.lerp(right, x[..., None]).unbind(-1)
        d_x = (right - left).unbind(-1)
        d_x = d_x[0].lerp(d_x[1], y)
        d_position = torch.stack([d_x, lower - upper], -1).mul_(self.weights[..., None])
        return d_position.mul_(self.size), upper.lerp(lower, y)


def _starts(shapes: Shapes) -> list[int]:
    """Lists the first padded cell of each level, and the end; zeros lie between levels."""
    gap = max(w for _, w in shapes) + 4
    starts = [gap]
    for height, width in shapes:
        starts.append(starts[-1] + (height + 2) * (width + 2) + gap)
    return starts


def _levels(x: Tensor, shapes: Shapes):
    """Yields the padded maps (H + 2, W + 2, ...) inside a table, as views."""
    for start, (height, width) in zip(_starts(shapes), shapes, strict=False):
        yield x[start : start + (height + 2) * (width + 2)].unflatten(0, (height + 2, width + 2))


def _pad(value: Tensor, shapes: Shapes) -> Tensor:
    """Pads (S, heads, D) to a table (padded cells * heads, D)."""
    table = value.new_zeros(_starts(shapes)[-1], *value.shape[1:])
    parts = value.split([h * w for h, w in shapes])
    for level, part, shape in zip(_levels(table, shapes), parts, shapes, strict=True):
        level[1:-1, 1:-1] = part.unflatten(0, shape)
    return table.flatten(0, 1)


def _unpad(table: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
    """Takes (S, heads, D) out of a table (padded cells * heads, D)."""
    levels = _levels(table.unflatten(0, (-1, value.shape[1])), shapes)
    return torch.cat([level[1:-1, 1:-1].flatten(0, 1) for level in levels])
