"""Time and memory of a ViT's attention with relative positions, forward and backward, three ways.

    python benchmarks/relative_position.py

As further channels of queries and keys (ours), as a bias that is given to the fused attention, and
with attention maps that are kept, as in Detectron2's ViT. 16 heads of 80 channels (ViT-H), an
image of 400 x 672 pixels. CPU time of one thread; the median of five runs. Memory is what the graph
of backward keeps.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from groupdetr_d2.layers.relative_position import attend_on_grid, relative_positions

SIZES = {"15 windows of 14 x 14": (15, 14, 14), "the whole, 25 x 42": (1, 25, 42)}
Attend = Callable[[Tensor, Tensor, Tensor, tuple[int, int], Tensor, Tensor], Tensor]


def bias_of(q: Tensor, size: tuple[int, int], table_h: Tensor, table_w: Tensor) -> Tensor:
    """Computes the logits of relative positions (B, heads, HW, HW)."""
    rows, columns = (
        relative_positions(t, n) for t, n in zip((table_h, table_w), size, strict=True)
    )
    grid = q.unflatten(2, size)
    of_rows = torch.einsum("bnhwd,hkd->bnhwk", grid, rows)[..., None]
    of_columns = torch.einsum("bnhwd,wkd->bnhwk", grid, columns)[..., None, :]
    return (of_rows + of_columns).flatten(-2).flatten(2, 3)


def with_bias(q, k, v, size, table_h, table_w) -> Tensor:
    """Attends by PyTorch's fused function, with a bias."""
    bias = bias_of(q, size, table_h, table_w)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def with_maps(q, k, v, size, table_h, table_w) -> Tensor:
    """Attends step by step."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (logits + bias_of(q, size, table_h, table_w)).softmax(-1) @ v


def measure(attend: Attend, size: tuple[int, int, int]) -> tuple[float, float]:
    """Measures CPU seconds of forward and backward, and the MiB kept between them."""
    windows, height, width = size
    q, k, v = (torch.randn(windows, 16, height * width, 80, requires_grad=True) for _ in range(3))
    tables = [torch.randn(2 * n - 1, 80, requires_grad=True) for n in (height, width)]
    seconds, kept = [], {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    for _ in range(5):
        kept.clear()
        start = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = attend(q, k, v, (height, width), *tables)
        out.sum().backward()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), sum(kept.values()) / 2**20


def main() -> None:
    """Prints one table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ways: dict[str, Attend] = {"channels": attend_on_grid, "bias": with_bias, "maps": with_maps}
    rows = []
    for name, size in SIZES.items():
        for way, attend in ways.items():
            seconds, kept = measure(attend, size)
            rows.append((name, way, 1e3 * seconds, kept))
    sys.stdout.write(tabulate(rows, ("grid", "way", "ms", "MiB kept"), floatfmt=".0f") + "\n")


if __name__ == "__main__":
    main()
