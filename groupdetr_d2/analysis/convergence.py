"""AP over the training of several runs (the paper's Figure 1): baselines dashed, groups bold."""

import argparse
from pathlib import Path

import numpy as np

from ..groups import QueryGroups
from .output import COLOURS, new_figure, save_figure, write_csv
from .runs import (
    Run,
    RunsError,
    by_label,
    mean_and_spread,
    mean_curve,
    metric_of,
    read_runs,
    split_label,
)


def run(args: argparse.Namespace) -> str:
    """Draws one line per label, with a band of one standard deviation over seeds."""
    runs = []
    for text in args.runs:
        label, path = split_label(text)
        is_named = path != text or Path(path).is_dir()
        runs += read_runs(path, label if is_named else "")
    together = by_label(runs)
    unit = "seconds" if args.equal_time else "epoch"
    untimed = sorted({run.label for run in runs if not run.seconds})
    if args.equal_time and untimed:
        raise RunsError(f"--equal-time: these runs have no time of an iteration: {untimed}")
    for label, same in together.items():
        if len({run.num_groups for run in same}) > 1:
            raise RunsError(f"runs called {label!r} differ in K: give them labels, LABEL=PATH")
    if unit == "epoch" and not all(run.epoch_iters for run in runs):
        unit = "iteration"
    out, metric = Path(args.out), metric_of(runs)
    rows = [row for label, same in together.items() for row in curve_rows(label, same)]
    write_csv(out / "convergence.csv", rows)
    draw(together, rows, unit, args.pairs, out / "convergence.png")
    last = [f"{k}: {mean_and_spread([r.final_ap for r in same])}" for k, same in together.items()]
    return f"last {metric}: " + "; ".join(last)


def curve_rows(label: str, runs: list[Run]) -> list[dict]:
    """Computes mean and deviation at the iterations that all seeds have."""
    times = [run.seconds for run in runs if run.seconds]
    seconds = float(np.mean(times)) if times else float("nan")
    return [
        {
            "label": label,
            "seeds": len(runs),
            "iteration": int(iteration),
            "epoch": iteration / (runs[0].epoch_iters or float("nan")),
            "seconds": iteration * seconds,
            runs[0].metric: mean,
            "deviation": spread,
        }
        for iteration, mean, spread in zip(*mean_curve(runs), strict=True)
    ]


def is_baseline(runs: list[Run]) -> bool:
    """Whether runs were trained with a single group."""
    return list(QueryGroups(1, runs[0].num_groups).numbers()) == [0]


def draw(
    together: dict[str, list[Run]], rows: list[dict], unit: str, pairs: bool, path: Path
) -> None:
    """Draws the curves over `unit`, a column of the rows."""
    metric = metric_of(run for same in together.values() for run in same)
    figure, axes = new_figure("convergence", unit, metric)
    for i, (label, runs) in enumerate(together.items()):
        own = [row for row in rows if row["label"] == label]
        x, mean, spread = (np.array([r[k] for r in own]) for k in (unit, metric, "deviation"))
        colour = COLOURS[(i // 2 if pairs else i) % len(COLOURS)]
        style = ("--", 1.2) if is_baseline(runs) else ("-", 2.4)
        axes.plot(x, mean, color=colour, linestyle=style[0], linewidth=style[1], label=label)
        if len(runs) > 1:
            axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15)
    axes.legend()
    save_figure(figure, path)
