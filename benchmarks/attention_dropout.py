"""Time of attention with dropout on a CPU, forward and backward, beside attention without it.

    python benchmarks/attention_dropout.py

Eight heads of 32 channels; the fastest of five runs counts.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from tabulate import tabulate

from groupdetr_d2.engine.memory import keep_freed_memory
from groupdetr_d2.layers.attention import fused, with_maps

SIZES = {  # batch, queries, keys
    "self-attention of 11 groups of 300": (22, 300, 300),
    "cross-attention to 1,000 cells, K = 1": (2, 300, 1000),
    "cross-attention to 1,000 cells, K = 11": (2, 3300, 1000),
    "PETR's cross-attention, 6,000 cells, K = 3": (1, 2700, 6000),
}


def seconds_of(attend: Callable, size: tuple[int, int, int], dropout: float) -> float:
    """Measures forward and backward."""
    batch, queries, keys = size
    q, k, v = (torch.randn(batch, 8, n, 32, requires_grad=True) for n in (queries, keys, keys))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        attend(q, k, v, None, dropout).sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints one table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = [
        (
            name,
            1e3 * seconds_of(fused, size, 0.0),
            1e3 * seconds_of(fused, size, 0.1),
            1e3 * seconds_of(with_maps, size, 0.1),
        )
        for name, size in SIZES.items()
    ]
    names = ["ms", "without dropout", "with dropout", "with dropout, maps kept"]
    sys.stdout.write(tabulate(rows, headers=names, floatfmt=".0f") + "\n")


if __name__ == "__main__":
    main()
