"""The figure of a training: losses, metrics and learning rate, from its metrics.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .metrics_file import read_metrics

VALIDATION = "validation"  # first part of the names of losses on the test sets
TRAINING_ALONE = ("_dn", "_enc")  # parts of names of losses that no validation has
TOTAL = "total_loss"


def draw_curves(folder: Path, out: Path, metrics: Sequence[str]) -> None:
    """Draws losses, metrics and learning rate of a run over epochs, or iterations without any."""
    records = read_metrics(folder)
    scale = epochs_of_iteration(records)
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    name_axes(left, "loss", scale)
    draw_losses(left, records, scale)
    name_axes(middle, "metrics", scale)
    for metric in metrics:
        plot(middle, points_of(records, metric, scale), metric.partition("/")[2], marker=".")
    name_axes(right, "learning rate", scale)
    plot(right, points_of(records, "lr", scale), "without the backbone's factor")
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axes in (left, middle, right):
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)


def draw_losses(
    axes: Axes, records: Sequence[dict], scale: float | None, *, label: str = "", **look: Any
) -> None:
    """Draws the loss in training, and the one on the test sets dashed.

    Where there is a validation loss, denoising queries and first stages are left out of the one in
    training, so that both are of the same terms. What is left between them is dropout, augmentation
    and groups.
    """
    validation = points_of(records, f"{VALIDATION}/{TOTAL}", scale)
    shared = [{**r, TOTAL: shared_loss(r)} for r in records if TOTAL in r]
    training = points_of(shared if validation else records, TOTAL, scale)
    plot(axes, training, f"{label} training".strip(), **look)
    dashed = {"linestyle": "--", "marker": ".", **look}
    plot(axes, validation, f"{label} validation".strip(), **dashed)


def shared_loss(record: dict) -> float:
    """Sums up the losses of a record that a validation has, too; else its total loss."""
    own = [
        value
        for name, value in record.items()
        if name.startswith("loss_") and not any(part in name for part in TRAINING_ALONE)
    ]
    return sum(own) if own else record[TOTAL]


def epochs_of_iteration(records: Sequence[dict]) -> float | None:
    """Finds the share of an epoch that an iteration is; None if that is not known."""
    known = [r["epoch"] / (r["iteration"] + 1) for r in records if r.get("epoch")]
    return known[-1] if known else None


def points_of(records: Sequence[dict], name: str, scale: float | None) -> list[tuple[float, float]]:
    """Lists a number of records over iterations done, or over epochs if `scale` is known."""
    return [((r["iteration"] + 1) * (scale or 1), r[name]) for r in records if name in r]


def plot(axes: Axes, points: Sequence[tuple[float, float]], label: str, **look: Any) -> None:
    """Draws a line through points, if there are any."""
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **look)


def name_axes(axes: Axes, title: str, scale: float | None) -> None:
    """Gives axes a title, the name of what is along them, and a grid."""
    axes.set(title=title, xlabel="iteration" if scale is None else "epoch")
    axes.grid(alpha=0.3)
