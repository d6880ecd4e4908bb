"""Dropout that costs little memory and, on a CPU, little time.

PyTorch's dropout keeps a mask per call and draws it element by element, which on a CPU takes
longer than the matrix products around it. Here a row of a mask is a window of one long mask that is
drawn once: it costs nothing to draw, and backward finds it again from the seed instead of keeping
it. Each mask begins at a random place of four million, and its rows lie a random step apart. Long
rows overlap, so that the mask of a tile of attention stays in the cache, but two given elements are
the same one in at most one mask of a thousand, and so say nothing of each other. Masks are numbers:
PyTorch's CPU kernels for bool are slow.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

LENGTH = 2**22  # places where a mask can begin
WINDOW = 2**20  # elements of the long mask that one mask can span
STEP = 2**10  # the least one from row to row of a mask, where rows are longer
CHUNK = 2**18  # elements that are dropped at a time: they stay in the cache


def checked_probability(p: float) -> float:
    """Returns a probability of dropping, or says which key is wrong."""
    if not 0 <= p < 1:
        raise UserError(f"MODEL.DETR.DROPOUT must be in [0, 1), not {p}")
    return p


def draw_seed() -> int:
    """Draws a seed from torch's default CPU generator."""
    return int(torch.randint(2**62, (), dtype=torch.int64))


def mask_generator(seed: int) -> np.random.BitGenerator:
    """Makes the generator that chooses windows, which a compiler of PyTorch leaves alone."""
    return np.random.PCG64DXSM(seed)


def draw_mask(shape: torch.Size, p: float, generator: np.random.BitGenerator) -> Tensor:
    """Draws the factors of dropout on the CPU, float32: 1 / (1 - p) for what is kept, and else 0.

    The result has rows that overlap in memory, and is not to be written to.
    """
    rows, length = math.prod(shape[:-1]), shape[-1]
    if (rows - 1) * min(length, 2 * STEP) + length > WINDOW:
        parts = torch.empty(shape.numel()).split(WINDOW)
        return torch.cat([draw_mask(part.shape, p, generator) for part in parts]).view(shape)
    place = generator.random_raw()
    step = max(1, min(length, STEP + (place >> 32) % STEP))
    long_mask = torch.from_numpy(_long_mask(p)[place % LENGTH :])
    return long_mask.unfold(0, length, step)[:rows].view(shape)


@functools.lru_cache(maxsize=4)
def _long_mask(p: float) -> np.ndarray:
    """Draws the mask (LENGTH + WINDOW,) whose parts are used; the same one in every process."""
    is_kept = np.random.default_rng(0).random(LENGTH + WINDOW) >= p
    return is_kept.astype(np.float32) / np.float32(1 - p)


def _drop_(x: Tensor, p: float, seed: int) -> Tensor:
    """Drops in place, a chunk at a time: masks stay in the cache and memory does not grow."""
    generator = mask_generator(seed)
    for part in x.view(-1).split(CHUNK):
        part.mul_(draw_mask(part.shape, p, generator).to(x.dtype))
    return x


class _SeededDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        ctx.p, ctx.seed = p, draw_seed()
        return _drop_(x.clone(memory_format=torch.contiguous_format), p, ctx.seed)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.clone(memory_format=torch.contiguous_format)
        return _drop_(grad, ctx.p, ctx.seed), None


class _ReluDropout(torch.autograd.Function):
    """ReLU and dropout: the gradient is zero where the result is, so that no mask is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        ctx.mark_dirty(x)
        ctx.scale = 1 / (1 - p)
        x.relu_()
        if p and x.is_cuda:
            F.dropout(x, p, inplace=True)
        elif p:
            _drop_(x, p, draw_seed())
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):
        (result,) = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, result, 0)  # ReLU's
        return grad if ctx.scale == 1 else grad.mul_(ctx.scale), None


class Dropout(nn.Module):
    """Dropout with probability `p` in training."""

    def __init__(self, p: float):
        super().__init__()
        self.p = checked_probability(p)

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements in training; returns the shape of `x`."""
        if not self.training or self.p == 0:
            return x
        return F.dropout(x, self.p) if x.is_cuda else _SeededDropout.apply(x, self.p)


class ReluDropout(nn.Module):
    """ReLU, then dropout, in place: one activation is kept for backward, not three."""

    def __init__(self, p: float):
        super().__init__()
        self.p = checked_probability(p)

    def forward(self, x: Tensor) -> Tensor:
        """Overwrites `x`, and returns it."""
        if not torch.is_grad_enabled() and not self.training:
            return x.relu_()
        return _ReluDropout.apply(x, self.p if self.training else 0.0)
