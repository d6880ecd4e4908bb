"""Numbers that the processes of a training agree on."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from detectron2.utils import comm


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
