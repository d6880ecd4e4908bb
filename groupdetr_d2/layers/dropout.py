"""Dropout that costs little memory and, on a CPU, little time.

PyTorch's dropout keeps a mask per call and draws it element by element, which on a CPU takes
longer than the matrix products around it. Here a mask is a function of a seed, so that backward
draws it again instead of keeping it, and sixteen bits of NumPy's generator, which is several times
faster than torch's, decide an element. Masks are numbers: PyTorch's CPU kernels for bool are slow.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

LEVELS = 2**16
CHUNK = 2**18  # elements whose mask is held at a time: they stay in the cache


def keep_threshold(p: float) -> int:
    """Returns the bound: elements whose 16 random bits, as a signed number, reach it are kept."""
    if not 0 <= p < 1:
        raise UserError(f"MODEL.DETR.DROPOUT must be in [0, 1), not {p}")
    return round(p * LEVELS) - LEVELS // 2


def keep_scale(p: float) -> float:
    """Returns the factor of kept values: exactly 1 / P(kept) for the rounded threshold."""
    return LEVELS / (LEVELS // 2 - keep_threshold(p))


def draw_seed() -> int:
    """Draws a seed from torch's default CPU generator."""
    return int(torch.randint(2**62, (), dtype=torch.int64))


def mask_generator(seed: int) -> np.random.BitGenerator:
    """Makes the generator whose bits decide what is dropped."""
    return np.random.PCG64DXSM(seed)


def draw_keep_mask(shape: torch.Size, p: float, generator: np.random.BitGenerator) -> Tensor:
    """Draws a random mask on the CPU, float32: 1 with probability 1 - p, and else 0."""
    numel = shape.numel()
    bits = torch.from_numpy(generator.random_raw((numel + 3) // 4).view(np.int16)[:numel])
    return bits.view(shape).float().ge_(keep_threshold(p))


def _drop_(x: Tensor, p: float, seed: int) -> Tensor:
    """Drops in place, a chunk at a time: masks stay in the cache and memory does not grow."""
    generator = mask_generator(seed)
    for part in x.view(-1).split(CHUNK):
        part.mul_(draw_keep_mask(part.shape, p, generator).mul_(keep_scale(p)).to(x.dtype))
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
        ctx.scale = keep_scale(p) if p else 1.0
        x.relu_()
        if p and x.is_cuda:
            F.dropout(x, p, inplace=True)
            ctx.scale = 1 / (1 - p)
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
        keep_threshold(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements in training; returns the shape of `x`."""
        if not self.training or self.p == 0:
            return x
        return F.dropout(x, self.p) if x.is_cuda else _SeededDropout.apply(x, self.p)


class ReluDropout(nn.Module):
    """ReLU, then dropout, in place: one activation is kept for backward, not three."""

    def __init__(self, p: float):
        super().__init__()
        keep_threshold(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Overwrites `x`, and returns it."""
        if not torch.is_grad_enabled() and not self.training:
            return x.relu_()
        return _ReluDropout.apply(x, self.p if self.training else 0.0)
