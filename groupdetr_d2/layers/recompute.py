"""Activation checkpointing (Chen et al., 2016)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run(layer: Callable[..., Tensor], *args, recompute: bool) -> Tensor:
    """`layer(*args)`; with `recompute`, backward computes it again instead of keeping its insides.

    The random numbers are drawn as before, so that the gradients are the same.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)
