"""The table of what a training step needs: K, recomputation, precision, accumulation, sharding."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tabulate import tabulate

from ..config import build_config
from ..errors import UserError
from .fake_device import COUNTED
from .fake_step import FakeModel, StepPeaks
from .random_batch import random_inputs
from .step_memory import SHARE_OF_PLAN, StepMemory, images_of_process, largest_size, memory_of

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": None}  # the faster one first


@dataclass(frozen=True)
class Choice:
    """A way to train: the fields are in the order of what they cost in time, the dearest first."""

    sharded: bool
    parts: int
    recompute: bool
    precision: str

    def __str__(self) -> str:
        words = [
            self.precision,
            "recompute" if self.recompute else "no recompute",
            f"accumulation in {self.parts} parts" if self.parts > 1 else "",
            "sharding" if self.sharded else "",
        ]
        return ", ".join(word for word in words if word)

    @property
    def cost(self) -> tuple:
        """The key that sorts choices by time, the fastest first."""
        return self.sharded, self.parts, self.recompute, self.precision == "float32"


def plan(args: argparse.Namespace) -> int:
    """Prints what every choice needs, and the fastest one that fits for each K."""
    cfg = build_config(args.config_file, args.opts)
    check_numbers(args)
    images = args.batch_size or images_of_process(cfg, args.num_gpus)
    size = args.image_size or largest_size(cfg)
    # counted are all images at once and one; what lies between is in proportion
    batches = [random_inputs(cfg, tuple(size), n, args.objects) for n in sorted({1, images})]
    found = {k: dict(memory_by_choice(cfg, args, k, batches)) for k in args.num_groups}
    write = as_json if args.json else as_text
    sys.stdout.write(write(args, found, images, tuple(size)) + "\n")
    return 0


def check_numbers(args: argparse.Namespace) -> None:
    """Checks the numbers of the command.

    Raises:
        UserError: naming one that is too small.
    """
    least = {
        "--num-gpus": (args.num_gpus, 1),
        "--batch-size": (1 if args.batch_size is None else args.batch_size, 1),
        "--num-groups": (min(args.num_groups), 1),
        "--image-size": (min(args.image_size or [32]), 32),
        "--objects": (args.objects, 0),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise UserError(f"{name} is {value}: it has to be at least {smallest}")
    if not args.gpu_memory > 0:
        raise UserError(f"--gpu-memory is {args.gpu_memory:g}: it has to be above 0, in GiB")


def memory_by_choice(
    cfg, args: argparse.Namespace, num_groups: int, batches: list[list[dict]]
) -> Iterator[tuple[Choice, StepMemory]]:
    """Yields every choice for a number of groups, the fastest first, and what it needs.

    Args:
        batches: inputs of one image, and of as many as a GPU has.
    """
    images = len(batches[-1])
    parts = [n for n in range(1, images + 1) if images % n == 0]
    shardings = (False, True) if args.num_gpus > 1 else (False,)
    peaks = dict(_count(cfg, args.device, num_groups, batches, shardings))
    ways = itertools.product((False, True), PRECISIONS)
    for sharded, n, (recompute, precision) in itertools.product(shardings, parts, ways):
        memory = memory_of(
            _peaks_at(peaks[sharded, recompute, precision], images // n),
            num_gpus=args.num_gpus,
            accumulates=n > 1,
            sharded=sharded,
            has_mean=cfg.MODEL.EMA.ENABLED,
        )
        yield Choice(sharded, n, recompute, precision), memory


def _count(
    cfg,
    device: str,
    num_groups: int,
    batches: list[list[dict]],
    shardings: tuple[bool, ...],
) -> Iterator[tuple[tuple[bool, bool, str], dict[int, StepPeaks]]]:
    """Yields sharding, recomputation and precision, with the peaks by number of images."""
    cfg = cfg.clone()
    cfg.MODEL.DETR.NUM_GROUPS = num_groups
    for recompute in (False, True):
        cfg.MODEL.DETR.RECOMPUTE = recompute
        model = FakeModel(cfg)
        for name, dtype in PRECISIONS.items():
            counted: dict[int, StepPeaks] = {}
            for sharded in shardings:
                if dtype or not counted:  # full precision has no copies, with sharding or without
                    counted = {
                        len(x): model.count(x, dtype, device, sharded=sharded) for x in batches
                    }
                yield (sharded, recompute, name), counted


def _peaks_at(known: dict[int, StepPeaks], images: int) -> StepPeaks:
    """The peaks of a number of images, between those of one and of all in proportion."""
    if images in known:
        return known[images]
    (few, low), (many, high) = sorted(known.items())
    share = (images - few) / (many - few)

    def between(a: int, b: int) -> int:
        return round(a + share * (b - a))

    peak = between(low.peak, high.peak)
    beside = between(low.peak_beside_gradients, high.peak_beside_gradients)
    return StepPeaks(low.parameters, peak, beside)


def fastest(found: dict[Choice, StepMemory], gpu_memory: float) -> tuple[Choice, StepMemory] | None:
    """Finds the fastest choice that fits, None if none does."""
    fitting = [item for item in found.items() if item[1].fits(gpu_memory)]
    return min(fitting, key=lambda item: item[0].cost, default=None)


def as_json(
    args: argparse.Namespace,
    found: dict[int, dict[Choice, StepMemory]],
    images: int,
    size: tuple[int, int],
) -> str:
    """Writes all rows, and which choice is the fastest for each K."""
    rows = [
        {"K": k, **vars(choice), **vars(memory), "total": memory.total}
        | {"fits": memory.fits(args.gpu_memory)}
        for k, of_choice in found.items()
        for choice, memory in of_choice.items()
    ]
    best = {k: fastest(of_choice, args.gpu_memory) for k, of_choice in found.items()}
    return json.dumps(
        {
            "images": images,
            "image_size": size,
            "kernels": COUNTED[args.device],
            "rows": rows,
            "fastest": {k: vars(x[0]) if x else None for k, x in best.items()},
        }
    )


def as_text(
    args: argparse.Namespace,
    found: dict[int, dict[Choice, StepMemory]],
    images: int,
    size: tuple[int, int],
) -> str:
    """Writes the table and the lines below it."""
    headers = ("K", "recompute", "precision", "parts", "sharded", "static", "activations")
    rows = [
        (
            k,
            "yes" if choice.recompute else "no",
            choice.precision,
            choice.parts,
            "yes" if choice.sharded else "no",
            *(f"{x / 2**30:.2f}" for x in (memory.static, memory.activations, memory.total)),
            "yes" if memory.fits(args.gpu_memory) else "no",
        )
        for k, of_choice in found.items()
        for choice, memory in of_choice.items()
    ]
    table = tabulate(
        rows, (*headers, "total GiB", "fits"), tablefmt="github", disable_numparse=True
    )
    what = (
        f"{args.num_gpus} GPUs of {args.gpu_memory:g} GiB with {images} images of {size[0]} x "
        f"{size[1]}; {COUNTED[args.device]}. What fits takes at most {SHARE_OF_PLAN:.0%} of a GPU."
    )
    lines = [_line(k, fastest(of_choice, args.gpu_memory)) for k, of_choice in found.items()]
    return "\n".join([what, "", table, "", *lines])


def _line(num_groups: int, best: tuple[Choice, StepMemory] | None) -> str:
    if best is None:
        return (
            f"K = {num_groups}: nothing fits; take smaller images (INPUT.MAX_SIZE_TRAIN), fewer "
            "images a GPU or more GPUs"
        )
    choice, memory = best
    return f"K = {num_groups}: the fastest that fits is {choice} ({memory.total / 2**30:.2f} GiB)"
