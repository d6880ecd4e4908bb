"""Time of deformable attention's sampling: the formulation of the paper's test code, and ours.

    python benchmarks/deform_sampling.py [--device cuda] [--image-size 480 640] [--num-groups 1 11]

For the encoder's queries (every position) and the decoder's, of 900 and 200 denoising ones a group.
All rows of a case are measured in turn, in one process; the fastest of five runs counts.
"""

import argparse
import sys
import time

import torch
import torch.nn.functional as F
from tabulate import tabulate

from groupdetr_d2.engine.memory import keep_freed_memory
from groupdetr_d2.layers import deform_sampling

HEADS, CHANNELS, POINTS, BATCH = 8, 32, 4, 2


def naive(value, shapes, locations, weights):
    """All levels' samples are stacked, then weighed: (B*heads, C, Q, levels, points) in memory."""
    batch, queries, heads = locations.shape[:3]
    grid, samples = 2 * locations - 1, []
    parts = value.split([h * w for h, w in shapes], dim=1)
    for i, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        level = part.flatten(2).transpose(1, 2).reshape(batch * heads, -1, *shape)
        where = grid[:, :, :, i].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(level, where, align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)
    return out.view(batch, -1, queries).transpose(1, 2)


def implementations(device: str) -> dict:
    """By name, those that work on the device."""
    fastest = deform_sampling.fastest(device)
    found = {"naive": naive, "reference": deform_sampling.reference}
    if fastest != "reference":
        found[fastest] = deform_sampling.choose(device)
    return found


def make_inputs(shapes, num_queries: int, device: str):
    """Values, locations around random points (num_queries 0: around every position), weights."""
    torch.manual_seed(0)
    num_cells = sum(h * w for h, w in shapes)
    if num_queries:
        points = torch.rand(BATCH, num_queries, 1, 1, 1, 2)
    else:
        grids = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(1)
            for h, w in shapes
        ]
        points = torch.cat(grids)[None, :, None, None, None]
    size = (BATCH, points.shape[1], HEADS, len(shapes), POINTS)
    cells = torch.tensor([(w, h) for h, w in shapes])[:, None]
    inputs = (
        torch.randn(BATCH, num_cells, HEADS, CHANNELS),
        points + 3 * torch.randn(*size, 2) / cells,
        torch.randn(*size).flatten(3).softmax(-1).view(size),
    )
    return [x.to(device).requires_grad_() for x in inputs]


def seconds(run, device: str) -> float:
    """The fastest of five runs, after one more."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(name: str, sample, shapes, inputs, device: str) -> dict:
    """Forward, and forward with backward, and what is kept between them."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def train():
        sample(inputs[0], shapes, *inputs[1:]).sum().backward()

    with torch.no_grad():
        forward = seconds(lambda: sample(inputs[0], shapes, *inputs[1:]), device)
    both = seconds(train, device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        sample(inputs[0], shapes, *inputs[1:])
    return {"": name, "forward s": forward, "+ backward s": both, "kept MiB": sum(kept.values())}


def main() -> None:
    """Prints a table a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--image-size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--num-groups", type=int, nargs="+", default=[1, 11])
    args = parser.parse_args()
    keep_freed_memory()
    shapes = tuple(
        tuple(-(-side // stride) for side in args.image_size) for stride in (8, 16, 32, 64)
    )
    cases = {"encoder": 0} | {f"decoder, K = {k}": 1100 * k for k in args.num_groups}
    for case, num_queries in cases.items():
        inputs = make_inputs(shapes, num_queries, args.device)
        rows = [
            measure(name, sample, shapes, inputs, args.device)
            for name, sample in implementations(args.device).items()
        ]
        for row in rows:
            row["x"] = f"{rows[0]['+ backward s'] / row['+ backward s']:.2f}"
            row["kept MiB"] = f"{row['kept MiB'] / 2**20:.0f}"
        title = f"{case}: {BATCH} x {inputs[1].shape[1]} queries"
        table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f")
        sys.stdout.write(f"{title}\n\n{table}\n\n")


if __name__ == "__main__":
    main()
