"""Activation checkpointing (Chen et al., 2016)."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Output = TypeVar("Output")


def run(layer: Callable[..., Output], *args, recompute: bool) -> Output:
    """`layer(*args)`; with `recompute`, backward computes it again instead of keeping its insides.

    The random numbers are drawn as before, so that the gradients are the same.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)
