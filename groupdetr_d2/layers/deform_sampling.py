"""The sampling of multi-scale deformable attention: one entry point, several implementations.

- ``reference``: plain PyTorch (`grid_sample`), on any device and in an ONNX export;
- ``sparse``: on a CPU, products with a sparse matrix (deform_sampling_sparse.py);
- ``triton``: on CUDA, kernels compiled when first used (deform_sampling_triton.py).

The fastest that a device has is taken and named once in the log. The environment variable
GROUPDETR_DEFORM_SAMPLING names another.
"""

import functools
import importlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from . import deform_sampling_sparse

logger = logging.getLogger(__name__)
Shapes = tuple[tuple[int, int], ...]
CHOICE = "GROUPDETR_DEFORM_SAMPLING"


def sample_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Adds up weighted bilinear samples of all levels; outside of a map there are zeros.

    Args:
        value: (B, S, heads, C / heads), levels flattened into S one after another.
        shapes: (height, width) of each level.
        locations: (B, Q, heads, levels, points, 2), x and y in [0, 1] of a level's padded map.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, C), in the type of `value`; sums are float32 at least.
    """
    if (
        value.device.type == "meta"
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.onnx.is_in_onnx_export()
    ):
        return reference(value, shapes, locations, weights)
    return choose(value.device.type)(value, shapes, locations, weights)


def reference(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Samples in plain PyTorch, see :func:`sample_levels`; positions and sums are float32 at least.

    Level by level, each with a grid of its own that lies in one piece: `grid_sample` on a CPU takes
    up to twice as long with a slice of all levels' (benchmarks/deform_sampling.py).
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    batch, num_queries, heads = locations.shape[:3]
    total: Tensor | int = 0
    parts = value.to(dtype).split([h * w for h, w in shapes], dim=1)
    for i, (part, (height, width)) in enumerate(zip(parts, shapes, strict=True)):
        level = part.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width)
        grid = (2 * locations[:, :, :, i].to(dtype) - 1).transpose(1, 2).flatten(0, 1)
        samples = F.grid_sample(level, grid, align_corners=False)  # (B*heads, C / heads, Q, points)
        weight = weights[:, :, :, i].to(dtype).transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (samples * weight).sum(-1)  # (B*heads, C / heads, Q)
    return total.reshape(batch, -1, num_queries).transpose(1, 2).to(value.dtype)


@functools.cache
def choose(device_type: str) -> Callable[..., Tensor]:
    """Chooses the implementation for a kind of device, and logs it once."""
    name = os.getenv(CHOICE) or fastest(device_type)
    known = {
        "reference": lambda: reference,
        "sparse": lambda: deform_sampling_sparse.sample_levels,
        "triton": lambda: _triton().sample_levels,
    }
    if name not in known:
        raise ValueError(f"{CHOICE} is {name!r}; it can be one of {', '.join(known)}")
    logger.info("deformable attention on %s: %s", device_type, name)
    return known[name]()


def fastest(device_type: str) -> str:
    """Names the fastest implementation that works here."""
    if device_type == "cpu" and deform_sampling_sparse.is_available():
        return "sparse"
    if device_type == "cuda" and importlib.util.find_spec("triton") is not None and triton_works():
        return "triton"
    return "reference"


def triton_works() -> bool:
    """Whether the kernels compile here, which takes a C compiler, and agree with `reference`.

    Tried in a thread of its own, where autocast, inference mode and the recomputation of
    activations around the caller do not reach.
    """
    try:
        with ThreadPoolExecutor(1) as pool:
            device = torch.device(torch.cuda.current_device())
            pool.submit(_check, _triton().sample_levels, device).result()
    except Exception as error:
        logger.warning(
            "deformable attention: Triton does not work here (%s: %s), so that plain PyTorch is "
            "used, which takes longer and more memory. Triton needs a C compiler (apt install gcc) "
            "and a writable folder (TRITON_CACHE_DIR)",
            type(error).__name__,
            " ".join(str(error).split())[:300],
        )
        return False
    return True


def _check(sample: Callable[..., Tensor], device: torch.device) -> None:
    """Compares an implementation with the reference, in the sizes of the published models.

    Raises:
        ArithmeticError: an output or a gradient is not the reference's.
    """
    shapes = ((8, 8), (4, 4), (2, 2), (1, 1))
    generator = torch.Generator().manual_seed(0)  # a training's random numbers stay as they are
    sizes = ((1, 85, 8, 32), (1, 16, 8, 4, 4, 2), (1, 16, 8, 4, 4))
    inputs = [torch.rand(size, generator=generator) for size in sizes]
    results = []
    for function in (reference, sample):
        leaves = [x.detach().to(device).requires_grad_() for x in inputs]
        out = function(leaves[0], shapes, *leaves[1:])
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    for expected, found in zip(*results, strict=True):
        if not (found - expected).norm() <= 1e-3 * expected.norm():
            raise ArithmeticError("its results are not those of plain PyTorch")


def _triton():
    return importlib.import_module(".deform_sampling_triton", __package__)
