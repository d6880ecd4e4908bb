"""Activations that backward computes again (Chen et al., 2016: activation checkpointing)."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Output = TypeVar("Output")


def run_layer(layer: Callable[..., Output], *args, recompute: bool) -> Output:
    """Calls ``layer(*args)``; with `recompute`, backward computes its activations again.

    The random numbers are drawn as before, so that the gradients are the same.
    """
    if recompute and torch.is_grad_enabled():
        # of which devices the random state is kept is seen from tensors that are arguments
        return checkpoint(lambda _, *x: layer(*x), _a_tensor(args), *args, use_reentrant=False)
    return layer(*args)


def recomputed(function: Callable[..., Output], *args) -> Output:
    """Calls ``function(*args)`` for models of other packages; backward calls it again."""
    return checkpoint(function, *args, use_reentrant=False)


def _a_tensor(args: tuple) -> Tensor:
    """Finds a tensor among the arguments and their fields."""
    values = (value for arg in args for value in (arg, *getattr(arg, "__dict__", {}).values()))
    return next(value for value in values if isinstance(value, Tensor))
