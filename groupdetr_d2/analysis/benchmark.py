"""Measures a training step at several numbers of groups: time, its shares, memory, FLOPs."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence

from tabulate import tabulate

from ..config import build_config
from ..errors import UserError
from .step_cost import count_flops, measure_step, middle_and_ends, run_apart


def benchmark(args: argparse.Namespace) -> int:
    """Prints a table; every K is measured in a process of its own, so that peaks do not mix.

    In several rounds the numbers of groups take turns, so that a machine whose speed drifts is slow
    for all of them.

    Raises:
        UserError: there is nothing to measure.
    """
    for name in ("steps", "rounds", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} has to be at least 1")
    rounds = [[run_apart(measure, args, k) for k in args.num_groups] for _ in range(args.rounds)]
    results = [combine(runs) for runs in zip(*rounds, strict=True)]
    sys.stdout.write(json.dumps(results) if args.json else format_table(results))
    sys.stdout.write("\n")
    return 0


def measure(args: argparse.Namespace, num_groups: int) -> dict:
    """Measures one K in this process."""
    cfg = build_config(args.config_file, args.opts)
    cfg.MODEL.DETR.NUM_GROUPS = num_groups
    size = tuple(args.image_size)
    flops = count_flops(
        cfg, size, args.batch_size, num_objects=args.objects, backward=not args.evaluate
    )
    if args.device:
        cfg.MODEL.DEVICE = args.device
    cost = measure_step(
        cfg,
        size,
        args.batch_size,
        num_objects=args.objects,
        steps=args.steps,
        training=not args.evaluate,
        warm_up=args.warm_up,
    )
    return {"K": num_groups, "flops": flops, **cost}


def combine(runs: Sequence[dict]) -> dict:
    """Combines the rounds of one K: median of all steps, mean shares, highest peak."""
    durations = [seconds for run in runs for seconds in run["durations"]]
    shares = {
        name: statistics.mean(run["shares"][name] for run in runs) for name in runs[0]["shares"]
    }
    peak = max(run["peak_mib"] for run in runs)
    return runs[0] | {
        **middle_and_ends(durations),
        "durations": durations,
        "shares": shares,
        "peak_mib": peak,
    }


def format_table(results: list[dict]) -> str:
    """Formats one row per K; ratios are to the first."""
    first, rows = results[0], []
    for r in results:
        row = {
            "K": r["K"],
            "step s (min-max)": f"{r['seconds']:.3f} ({r['fastest']:.3f}-{r['slowest']:.3f})",
            "x time": f"{r['seconds'] / first['seconds']:.2f}",
            "GFLOP": f"{r['flops'] / 1e9:.0f}",
            "x FLOP": f"{r['flops'] / first['flops']:.2f}",
            "peak MiB": f"{r['peak_mib']:.0f}",
            "x memory": f"{r['peak_mib'] / first['peak_mib']:.2f}",
        }
        shares = {f"{name} %": f"{100 * share:.1f}" for name, share in r["shares"].items()}
        rows.append(row | shares)
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
