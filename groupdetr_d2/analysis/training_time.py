"""Hours of an epoch, measured on a few steps, and what groups add to them (the paper's Table 2)."""

import argparse
from pathlib import Path

from ..engine.setup import build_config
from .output import new_figure, save_figure, write_csv
from .runs import split_label
from .step_cost import measure_step, run_apart

COCO_TRAIN_IMAGES = 118287


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Beside --out and the overrides."""
    parser.add_argument("--config-file", nargs="+", required=True, metavar="[LABEL=]FILE")
    parser.add_argument("--num-groups", type=int, nargs="+", default=[1, 11], metavar="K")
    parser.add_argument("--image-size", type=int, nargs=2, default=[800, 1066], metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=2, help="of a process")
    parser.add_argument("--processes", type=int, default=1, help="that share an epoch evenly")
    parser.add_argument("--images", type=int, default=COCO_TRAIN_IMAGES, help="of an epoch")
    parser.add_argument("--steps", type=int, default=3, help="measured steps, after two more")


def run(args: argparse.Namespace) -> str:
    """Every case is measured in a process of its own."""
    rows = []
    for label, config in map(split_label, args.config_file):
        first = None
        for k in args.num_groups:
            cost = run_apart(measure, args, config, k)
            first = first or cost["seconds"]
            steps = args.images / (args.batch_size * args.processes)
            rows.append(
                {
                    "model": label.removesuffix(".yaml"),
                    "K": k,
                    "step s": cost["seconds"],
                    "hours an epoch": cost["seconds"] * steps / 3600,
                    "ratio": cost["seconds"] / first,
                }
            )
    out = Path(args.out)
    write_csv(out / "time.csv", rows)
    figure, axes = new_figure("training time", "", "hours an epoch")
    names = [f"{r['model']}\nK = {r['K']}" for r in rows]
    bars = axes.bar(names, [r["hours an epoch"] for r in rows])
    axes.bar_label(bars, [f"{r['ratio']:.2f} x" for r in rows])
    axes.tick_params(axis="x", labelsize=7)
    save_figure(figure, out / "time.png")
    return "; ".join(
        f"{r['model']}, K = {r['K']}: {r['hours an epoch']:.2f} hours an epoch ({r['ratio']:.2f} x)"
        for r in rows
    )


def measure(args: argparse.Namespace, config: str, num_groups: int) -> dict:
    """Seconds of a training step in this process."""
    cfg = build_config(config, args.opts)
    cfg.MODEL.DETR.NUM_GROUPS = num_groups
    size = tuple(args.image_size)
    return measure_step(cfg, size, args.batch_size, num_objects=7, steps=args.steps, training=True)
