"""Deformable attention's sampling on CUDA: one Triton kernel forward and one backward.

A program handles a block of queries in one head of one image, all channels of the head side by
side, so that gradients of locations and weights are sums inside a program; gradients of values are
added up atomically in float32. Nothing but the inputs is kept for backward.
"""

import contextlib
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

Shapes = tuple[tuple[int, int], ...]
BLOCK = 32  # queries of a program
SIZES = ("num_cells", "num_queries")  # change with every image: not worth compiling anew


@triton.jit
def _corners(location_ptr, sizes_ptr, sample, live, level):
    """Finds the upper left cell of each sample, its position inside it, and the level's size."""
    height = tl.load(sizes_ptr + 3 * level)
    width = tl.load(sizes_ptr + 3 * level + 1)
    x = tl.load(location_ptr + 2 * sample, mask=live, other=0.0) * width - 0.5
    y = tl.load(location_ptr + 2 * sample + 1, mask=live, other=0.0) * height - 0.5
    # beyond a cell outside nothing changes; NaN becomes a place outside
    x = tl.where((x > -2) & (x < width + 1), x, -2.0)
    y = tl.where((y > -2) & (y < height + 1), y, -2.0)
    x0 = tl.floor(x)
    y0 = tl.floor(y)
    return x0.to(tl.int32), y0.to(tl.int32), x - x0, y - y0, height, width


@triton.jit
def _read(value_ptr, x, y, height, width, start, live, stride, channel, channels: tl.constexpr):
    """Reads values of cells, (block, channels), zero outside; returns addresses and mask, too."""
    inside = live & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cell = start + y * width + x
    offset = cell.to(tl.int64)[:, None] * stride + channel[None, :]
    mask = inside[:, None] & (channel < channels)[None, :]
    return tl.load(value_ptr + offset, mask=mask, other=0.0).to(tl.float32), offset, mask


@triton.jit(do_not_specialize=SIZES)
def _forward(
    value_ptr, location_ptr, weight_ptr, sizes_ptr, out_ptr, num_cells, num_queries,
    heads: tl.constexpr, channels: tl.constexpr, levels: tl.constexpr, points: tl.constexpr,
    block: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * block + tl.arange(0, block)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    live = query < num_queries
    channel = tl.arange(0, padded)
    stride = heads * channels
    value_ptr += image * num_cells * stride + head * channels
    row = (image * num_queries + query) * heads + head
    total = tl.zeros((block, padded), dtype=tl.float32)
    for level in tl.static_range(levels):
        start = tl.load(sizes_ptr + 3 * level + 2)
        for point in tl.static_range(points):
            sample = row * (levels * points) + level * points + point
            x, y, fx, fy, height, width = _corners(location_ptr, sizes_ptr, sample, live, level)
            weight = tl.load(weight_ptr + sample, mask=live, other=0.0).to(tl.float32)
            for corner in tl.static_range(4):
                dx = corner % 2
                dy = corner // 2
                along_x = fx if dx else 1 - fx
                along_y = fy if dy else 1 - fy
                cells, _, _ = _read(
                    value_ptr, x + dx, y + dy, height, width, start, live, stride, channel, channels
                )
                total += cells * (weight * along_x * along_y)[:, None]
    out = row[:, None] * channels + channel[None, :]
    mask = live[:, None] & (channel < channels)[None, :]
    tl.store(out_ptr + out, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _backward(
    value_ptr, location_ptr, weight_ptr, sizes_ptr, grad_ptr,
    d_value_ptr, d_location_ptr, d_weight_ptr, num_cells, num_queries,
    heads: tl.constexpr, channels: tl.constexpr, levels: tl.constexpr, points: tl.constexpr,
    block: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * block + tl.arange(0, block)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    live = query < num_queries
    channel = tl.arange(0, padded)
    stride = heads * channels
    first = image * num_cells * stride + head * channels
    row = (image * num_queries + query) * heads + head
    mask = live[:, None] & (channel < channels)[None, :]
    grad = tl.load(grad_ptr + row[:, None] * channels + channel[None, :], mask=mask, other=0.0)
    grad = grad.to(tl.float32)
    for level in tl.static_range(levels):
        start = tl.load(sizes_ptr + 3 * level + 2)
        for point in tl.static_range(points):
            sample = row * (levels * points) + level * points + point
            x, y, fx, fy, height, width = _corners(location_ptr, sizes_ptr, sample, live, level)
            weight = tl.load(weight_ptr + sample, mask=live, other=0.0).to(tl.float32)
            d_weight = tl.zeros((block,), dtype=tl.float32)
            d_x = tl.zeros((block,), dtype=tl.float32)
            d_y = tl.zeros((block,), dtype=tl.float32)
            for corner in tl.static_range(4):
                dx = corner % 2
                dy = corner // 2
                along_x = fx if dx else 1 - fx
                along_y = fy if dy else 1 - fy
                cells, offset, inside = _read(
                    value_ptr + first, x + dx, y + dy, height, width, start, live, stride,
                    channel, channels,
                )  # fmt: skip
                product = tl.sum(cells * grad, axis=1)
                d_weight += product * along_x * along_y
                d_x += product * along_y * (2 * dx - 1)
                d_y += product * along_x * (2 * dy - 1)
                d_cells = grad * (weight * along_x * along_y)[:, None]
                # sums need no order among threads, which by default would be a fence each
                tl.atomic_add(d_value_ptr + first + offset, d_cells, mask=inside, sem="relaxed")
            tl.store(d_weight_ptr + sample, d_weight, mask=live)
            tl.store(d_location_ptr + 2 * sample, d_x * weight * width, mask=live)
            tl.store(d_location_ptr + 2 * sample + 1, d_y * weight * height, mask=live)


def sample_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Samples on CUDA, see :func:`.deform_sampling.sample_levels`; float64 becomes float32."""
    sizes = _sizes(shapes, value.device)
    locations, weights = locations.float().contiguous(), weights.float().contiguous()
    return _TritonSampling.apply(value.contiguous(), locations, weights, sizes)


@functools.lru_cache(maxsize=256)
def _sizes(shapes: Shapes, device: torch.device) -> Tensor:
    """Makes (levels, 3): height, width and first cell of each level."""
    rows, start = [], 0
    for height, width in shapes:
        rows.append([height, width, start])
        start += height * width
    with torch.inference_mode(False):  # it is kept, and a training may use it later
        return torch.tensor(rows, dtype=torch.int32).to(device)


class _TritonSampling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, locations, weights, sizes):
        ctx.save_for_backward(value, locations, weights, sizes)
        out = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
        if out.numel():
            _launch(_forward, value, locations, (value, locations, weights, sizes, out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        value, locations, weights, sizes = ctx.saved_tensors
        d_value = torch.zeros_like(value, dtype=torch.float32)
        d_locations, d_weights = torch.empty_like(locations), torch.empty_like(weights)
        if grad.numel():
            tensors = (value, locations, weights, sizes, grad.contiguous())
            _launch(_backward, value, locations, (*tensors, d_value, d_locations, d_weights))
        return d_value.to(value.dtype), d_locations, d_weights, None


def _launch(kernel, value: Tensor, locations: Tensor, tensors: tuple[Tensor, ...]) -> None:
    batch, num_cells, heads, channels = value.shape
    _, num_queries, _, levels, points, _ = locations.shape
    grid = (triton.cdiv(num_queries, BLOCK), heads, batch)
    # Triton starts kernels on the current device; its interpreter has none
    with torch.cuda.device(value.device) if value.is_cuda else contextlib.nullcontext():
        kernel[grid](
            *tensors, num_cells, num_queries, heads, channels, levels, points,
            block=BLOCK, padded=triton.next_power_of_2(channels),
        )  # fmt: skip
