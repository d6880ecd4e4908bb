"""Memory of a training process: its peak, and the allocator of the CPU."""

import ctypes

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # <malloc.h>


def peak_memory_mib(device: torch.device) -> float:
    """Returns the highest memory so far, of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def keep_freed_memory() -> None:
    """Keeps glibc from giving large freed blocks back to the kernel.

    A training step on a CPU allocates the same large tensors again and again; by default each is
    mapped afresh and its pages are faulted in one by one, which takes longer than many operations
    on them. Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 * 2**20)
