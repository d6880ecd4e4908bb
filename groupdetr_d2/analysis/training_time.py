"""Hours of an epoch, measured on a few steps, and what groups add to them (the paper's Table 2)."""

import argparse
from pathlib import Path

from ..config import build_config
from .output import new_figure, save_figure, write_csv
from .runs import split_label
from .step_cost import measure_step, run_apart

COCO_TRAIN_IMAGES = 118287


def run(args: argparse.Namespace) -> str:
    """Measures every case in a process of its own."""
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
    """Measures the seconds of a training step in this process."""
    cfg = build_config(config, args.opts)
    cfg.MODEL.DETR.NUM_GROUPS = num_groups
    size = tuple(args.image_size)
    return measure_step(cfg, size, args.batch_size, num_objects=7, steps=args.steps, training=True)
