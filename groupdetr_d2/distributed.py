"""Numbers that the processes of a training agree on, and tensors that they hold together."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

SPREAD: Any  # the kind of tensor of which every process holds a part
try:
    from torch.distributed.tensor import DTensor

    SPREAD = DTensor
except ImportError:  # PyTorch before 2.5
    SPREAD = ()


def average_over_processes(count: float) -> float:
    """Averages a number over the processes of the training."""
    if not (dist.is_available() and dist.is_initialized()):
        return count
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Within, the other processes wait until the first one has done the same work.

    An error of the first one ends the training, and with it those that wait.
    """
    if not comm.is_main_process():
        comm.synchronize()
    yield
    if comm.is_main_process():
        comm.synchronize()


def whole(tensor: Tensor) -> Tensor:
    """Collects a tensor of which every process holds a part; others are returned as they are.

    All processes have to call it for the same tensors in the same order.
    """
    return tensor.full_tensor() if isinstance(tensor, SPREAD) else tensor


def whole_state(state: Any) -> Any:
    """Copies a state whose tensors may be spread over the processes, with whole tensors.

    All processes have to call it, with states of the same structure. The first one gets the
    collected tensors, on the host; the others get None in their places. Tensors that are whole
    already stay as they are, in all processes.

    Args:
        state: what `state_dict` returns: tensors and other values in dictionaries, lists and
            tuples.
    """
    if isinstance(state, SPREAD):
        collected = whole(state).cpu()
        return collected if comm.is_main_process() else None
    if isinstance(state, dict):
        copied = copy.copy(state)  # a model's state dict has attributes, too
        copied.update({key: whole_state(value) for key, value in state.items()})
        return copied
    if type(state) in (list, tuple):
        return type(state)(whole_state(value) for value in state)
    return state
