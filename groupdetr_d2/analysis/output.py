"""What every analysis leaves: a picture, a table as CSV, a line of text."""

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

COLOURS = matplotlib.colormaps["tab10"].colors


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """A line a row, under the names of the first row; numbers with four digits after the point."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value):
    if isinstance(value, (float, np.floating)):
        return f"{value:.4f}"
    return value


def save_figure(figure: Figure, path: Path) -> None:
    """As PNG."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def new_figure(title: str, xlabel: str, ylabel: str, size: tuple[float, float] = (6.4, 4)):
    """A figure with one pair of axes and a grid."""
    figure = Figure(figsize=size)  # without pyplot no backend is asked for, and none is left open
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes
