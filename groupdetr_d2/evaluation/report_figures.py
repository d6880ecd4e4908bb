"""Figures of an evaluation: precision and recall, F1, confusion."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .colours import class_colour
from .detection_curves import Curves

NAMED = 12  # classes with a line of their own; of more, only the mean is in colour


def draw_precision_recall(by_class: Sequence[Curves], names: Sequence[str], overlap: str) -> Figure:
    """Draws precision over recall, one line per class, with its AP.

    Args:
        overlap: what a detection of an object is, for the title.
    """
    figure, axes = _axes(f"Precision and recall ({overlap})", "recall", "precision")
    for i, (curves, name) in enumerate(zip(by_class, names, strict=True)):
        label = f"{name} {100 * curves.average_precision:.1f}"
        _line(axes, curves.recall, curves.precision, label, i, len(names))
    return _finished(figure, axes, len(names))


def draw_f1(
    by_class: Sequence[Curves],
    together: Curves,
    names: Sequence[str],
    threshold: float,
    overlap: str,
) -> Figure:
    """Draws F1 over the threshold, one line per class, and in bold all classes together."""
    figure, axes = _axes(f"F1 over the score threshold ({overlap})", "threshold", "F1")
    for i, (curves, name) in enumerate(zip(by_class, names, strict=True)):
        _line(axes, curves.scores, curves.f1, name, i, len(names))
    best = together.at(threshold)[2]
    label = f"all classes, best {best:.2f} at {threshold:.2f}"
    axes.plot(together.scores, together.f1, color="black", linewidth=2.5, label=label)
    axes.axvline(threshold, color="black", linewidth=0.8, linestyle="--")
    return _finished(figure, axes, len(names))


def draw_confusion(matrix: np.ndarray, names: Sequence[str], overlap: str) -> Figure:
    """Draws the share of each true class that was found as each class.

    The last row counts detections of nothing.
    """
    size = min(16, 3.5 + 0.4 * len(matrix))
    figure = Figure(figsize=(size + 1, size))
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [*names, "nothing"]
    if len(labels) <= 31:
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        for (i, j), number in np.ndenumerate(matrix):
            if number:
                ink = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(number), ha="center", va="center", color=ink, fontsize=7)
    axes.set(title=f"Confusion ({overlap})", xlabel="found as", ylabel="truth")
    figure.colorbar(picture, label="share of the row")
    figure.tight_layout()
    return figure


def _axes(title: str, xlabel: str, ylabel: str):
    figure = Figure(figsize=(7.5, 4.5))
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure, axes


def _line(axes, x: np.ndarray, y: np.ndarray, label: str, index: int, num_classes: int) -> None:
    """Draws the line of a class in the colour that it has in pictures."""
    if num_classes > NAMED:
        axes.plot(x, y, color="lightgrey", linewidth=0.8)
    else:
        colour = [value / 255 for value in reversed(class_colour(index))]
        axes.plot(x, y, linewidth=1.6, color=colour, label=label)


def _finished(figure: Figure, axes, num_classes: int) -> Figure:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure
