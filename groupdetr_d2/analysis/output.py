"""The output of every analysis: a picture, a table as CSV, a line of text."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
from detectron2.utils.logger import setup_logger
from matplotlib.figure import Figure

from ..tables import write_csv

__all__ = ["COLOURS", "new_figure", "save_figure", "write_csv"]
COLOURS = matplotlib.color_sequences["tab10"]


def save_figure(figure: Figure, path: Path) -> None:
    """Saves a figure as PNG."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def new_figure(title: str, xlabel: str, ylabel: str, size: tuple[float, float] = (6.4, 4)):
    """Makes a figure with one pair of axes and a grid."""
    figure = Figure(figsize=size)  # without pyplot no backend is asked for, and none is left open
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def write_analysis(analysis: Callable[[argparse.Namespace], str], args: argparse.Namespace) -> None:
    """Runs an analysis in its folder --out, and writes and prints the line that it returns."""
    setup_logger(name="groupdetr_d2")
    logging.getLogger("groupdetr_d2").setLevel(logging.INFO)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    text = analysis(args)
    (out / f"{args.name}.txt").write_text(text + "\n")
    sys.stdout.write(f"{text}\n{out}: {', '.join(sorted(p.name for p in out.glob('*.*')))}\n")
