"""A device without memory: which kernels a fake training step is counted with.

PyTorch's autograd needs a GPU for fake tensors that pretend to be on one. So the tensors of a step
that is planned for a GPU are fake ones of a CPU, and what a GPU would do otherwise is put in their
way here: the types of autocast, attention and dropout, the sampling of deformable attention.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from ..layers import attention, deform_sampling, dropout, recompute
from ..modeling import two_stage

COUNTED = {
    "cuda": "kernels of CUDA: fused attention, deformable attention in Triton",
    "cpu": "kernels of a CPU: fused attention, deformable attention as sparse products",
}
IS_CUDA = vars(torch._C.TensorBase)["is_cuda"].__get__
INPUTS_IN_FULL = {"layer_norm", "group_norm"}  # autocast's float32 operations on CUDA
OUTPUTS_IN_FULL = {"softmax", "log_softmax"}  # their inputs are read as they are
CACHES = "transformers.pytorch_utils"  # where its functions keep results, except in a compiler
Shapes = tuple[tuple[int, int], ...]


@contextlib.contextmanager
def implementations_of(device: str) -> Iterator[None]:
    """Has a CPU's fake tensors treated as by a "cuda" or by a "cpu" device."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(deform_sampling, choose=lambda _: SAMPLING[device]))
        if CACHES in sys.modules:  # which would keep tensors without data beyond a step
            stack.enter_context(
                _replaced(sys.modules[CACHES], is_torchdynamo_compiling=lambda: True)
            )
        if device == "cuda":
            stack.enter_context(_replaced(attention, implementation=_attend_on_cuda))
            stack.enter_context(_replaced(two_stage, CHUNKS={}))
            stack.enter_context(_replaced(recompute, checkpoint=_checkpoint_on_cuda))
            stack.enter_context(AsOnCuda())
        else:  # what NumPy draws has no place among fake tensors
            stack.enter_context(_replaced(dropout, draw_seed=lambda: 0, _drop_=_keep_all))
            stack.enter_context(
                _replaced(attention, draw_seed=lambda: 0, draw_mask=_mask_without_data)
            )
        yield


@contextlib.contextmanager
def _replaced(owner: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values}
    try:
        vars(owner).update(values)
        yield
    finally:
        vars(owner).update(before)


def _keep_all(x: Tensor, p: float, seed: int) -> Tensor:
    return x


def _mask_without_data(shape: torch.Size, p: float, generator: object) -> Tensor:
    return torch.empty(shape)


class AsOnCuda(TorchFunctionMode):
    """Answers for tensors of a CPU as PyTorch does on a GPU, where that takes other memory."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Calls the function, or what takes its place."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func == IS_CUDA:
            return True
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if func is F.dropout and not kwargs.get("inplace"):
            return _dropout(*args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            if name in INPUTS_IN_FULL:
                args, kwargs = tree_map_only(Tensor, _in_full, (args, kwargs))
            elif name in OUTPUTS_IN_FULL:
                kwargs = {"dtype": torch.float32} | kwargs
        return func(*args, **kwargs)


def _checkpoint_on_cuda(*args: Any, **named: Any) -> Any:
    """Recomputes as on CUDA: PyTorch calls `backward` outside of function modes."""
    return checkpoint(*args, **named, context_fn=lambda: (contextlib.nullcontext(), AsOnCuda()))


def _in_full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Drops as CUDA's kernel, which keeps a mask of a byte an element."""
    return torch.native_dropout(x, p, training)[0] if training and p else x


def _attend_on_cuda(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout: float
) -> Tensor:
    allowed = None if attn_mask is None else ~attn_mask
    return attention._device_attention(q, k, v, allowed, dropout)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attends without maps; PyTorch's own choice knows no GPU here."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (x.to(dtype) for x in (query, key, value))
    bias = attn_mask
    if attn_mask is not None:  # a number for each element of the mask, as the kernel reads it
        bias = query.new_zeros(attn_mask.shape).expand(*query.shape[:3], key.shape[2])
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]


class _Sampling(torch.autograd.Function):
    """Deformable attention's sampling, of which the inputs are kept; backward has float32 sums."""

    @staticmethod
    def forward(ctx, value: Tensor, locations: Tensor, weights: Tensor, work: tuple[int, int]):
        ctx.save_for_backward(value, locations, weights)
        ctx.work = work[1]
        out = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
        out.new_empty(work[0], dtype=torch.uint8)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        value, locations, weights = ctx.saved_tensors
        grad = grad.contiguous()
        d_value = torch.zeros_like(value, dtype=torch.float32)
        found = (torch.empty_like(locations), torch.empty_like(weights))
        grad.new_empty(ctx.work, dtype=torch.uint8)
        return d_value.to(value.dtype), *found, None


def _sample_in_triton(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Takes the memory of deform_sampling_triton.py."""
    locations, weights = locations.float().contiguous(), weights.float().contiguous()
    return _Sampling.apply(value.contiguous(), locations, weights, (0, 0))


def _sample_sparsely(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Takes the memory of deform_sampling_sparse.py, with its matrix of one image at a time."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    inputs = [x.to(dtype).contiguous() for x in (value, locations, weights)]
    samples = 4 * weights[0].numel() * 4  # bytes of a number for each corner
    table = value[0].numel() * 4
    # columns, weights and positions; backward has the gradient of the table and those of corners
    work = (2 * samples + samples // 2 + table, 4 * samples + 2 * table)
    return _Sampling.apply(*inputs, work).to(value.dtype)


SAMPLING = {"cuda": _sample_in_triton, "cpu": _sample_sparsely}
