"""Numbers that the processes of a training agree on."""

import torch
import torch.distributed as dist


def average_over_processes(count: float) -> float:
    """Averages a number over the processes of the training."""
    if not (dist.is_available() and dist.is_initialized()):
        return count
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()
