"""Memory of a training step with attention maps and without them (the paper's Figure 7)."""

import argparse
import logging
from pathlib import Path

import numpy as np

from ..config import build_config
from ..layers import attention
from .output import new_figure, save_figure, write_csv
from .runs import split_label
from .step_cost import measure_step, run_apart

logger = logging.getLogger(__name__)
IMPLEMENTATIONS = {"attention maps": attention.with_maps, "fused": attention.fused}


def run(args: argparse.Namespace) -> str:
    """Measures every case in a process of its own, so that peaks do not mix."""
    rows = []
    for label, config in map(split_label, args.config_file):
        for name in IMPLEMENTATIONS:
            for k in args.num_groups:
                model = {"model": label.removesuffix(".yaml"), "attention": name, "K": k}
                rows.append(model | measure_apart(measure, args, config, name, k))
    out = Path(args.out)
    write_csv(out / "memory.csv", rows)
    draw(rows, out / "memory.png")
    return "; ".join(
        f"{r['model']}, K = {r['K']}, {r['attention']}: {r['peak MiB']:.0f} MiB" for r in rows
    )


def measure_apart(function, *case) -> dict:
    """Calls `function(*case)`; returns NaN where it fails, so that the other cases are kept."""
    try:
        return run_apart(function, *case)
    except Exception as error:  # running out of memory has many names
        logger.error("%s: %s", case[1:], error)
        return {"peak MiB": float("nan"), "step s": float("nan")}


def measure(args: argparse.Namespace, config: str, name: str, num_groups: int) -> dict:
    """Measures the highest memory of a few steps with one of IMPLEMENTATIONS."""
    attention.implementation = IMPLEMENTATIONS[name]
    cfg = build_config(config, args.opts)
    cfg.MODEL.DETR.NUM_GROUPS = num_groups
    size = tuple(args.image_size)
    cost = measure_step(cfg, size, args.batch_size, num_objects=7, steps=1, training=True)
    return {"peak MiB": cost["peak_mib"], "step s": cost["seconds"]}


def draw(rows: list[dict], path: Path) -> None:
    """Draws one bar per case, models side by side."""
    figure, axes = new_figure("peak memory of a training step", "", "MiB")
    models = list(dict.fromkeys(r["model"] for r in rows))
    cases = list(dict.fromkeys((r["attention"], r["K"]) for r in rows))
    places = np.arange(len(models))
    for i, (name, num_groups) in enumerate(cases):
        values = [r["peak MiB"] for r in rows if (r["attention"], r["K"]) == (name, num_groups)]
        offset = (i - (len(cases) - 1) / 2) * 0.8 / len(cases)
        grey = f"{0.85 - 0.5 * i / len(cases):.2f}"
        colour = grey if name == "attention maps" else f"C{i}"
        bars = axes.bar(
            places + offset,
            values,
            0.75 / len(cases),
            color=colour,
            label=f"{name}, K = {num_groups}",
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(places, models)
    axes.legend(fontsize=8)
    save_figure(figure, path)
