"""Finished and running trainings: their curves of AP, from a folder or from a file of results.

A results file is JSON: ``{"runs": [{"label", "seed", "AP": {iteration: AP}, ...}, ...]}``. It is
what `analyze sweep` writes, and small enough to be committed. "metric" says what the numbers under
"AP" are called, if they are something else.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.modeling import META_ARCH_REGISTRY

from .. import modeling  # noqa: F401 - registers the meta-architectures, which name the task
from ..config.yaml_file import YamlError, load_mapping
from ..errors import UserError
from ..evaluation.metrics_file import read_metrics
from ..tasks.boxes import BOXES
from ..tasks.task import Task


class RunsError(UserError):
    """A folder or file has no AP to read."""


@dataclass(frozen=True)
class Run:
    """A training: its label, its seed and its results."""

    label: str
    seed: int
    ap: dict[int, float]  # by number of iterations done: the task's metric
    metric: str = "AP"  # what it is called, such as NDS for boxes in space
    num_groups: int = 1
    epoch_iters: float | None = None  # iterations of an epoch, if known
    seconds: float | None = None  # of an iteration, median
    # the numbers that a report begins with, by name and number of iterations
    summary: dict[str, dict[int, float]] = field(default_factory=dict, compare=False)
    record: dict = field(default_factory=dict, compare=False)  # everything else that is known

    @property
    def final_ap(self) -> float:
        """The AP of the last evaluation."""
        return self.ap[max(self.ap)]


def read_runs(path: str | Path, label: str = "") -> list[Run]:
    """Reads the runs of a results file, or the one of a training's folder, called `label`.

    Raises:
        RunsError: naming the path and what is missing.
    """
    path = Path(path)
    if path.is_dir():
        return [read_folder(path, label or path.name)]
    if not path.is_file():
        raise RunsError(f"{path} is neither a training's folder nor a results file")
    try:
        records = json.loads(path.read_text())["runs"]
        runs = [run_of(record) for record in records]
    except (ValueError, KeyError, TypeError) as error:
        raise RunsError(f"{path} is no results file: {type(error).__name__}: {error}") from error
    wanted = [run for run in runs if not label or run.label == label]
    if not wanted:
        labels = sorted({run.label for run in runs})
        raise RunsError(f"{path} has no run {label!r}; its labels are {labels}")
    return wanted


def run_of(record: dict) -> Run:
    """Makes a run of its record in a results file."""
    return Run(
        label=record["label"],
        seed=record["seed"],
        ap={int(i): ap for i, ap in record["AP"].items()},
        metric=record.get("metric", "AP"),
        num_groups=record.get("num_groups", 1),
        epoch_iters=record.get("epoch_iters"),
        seconds=record.get("seconds_per_iteration"),
        record=record,
    )


def read_folder(folder: Path, label: str) -> Run:
    """Reads a run from its metrics.json and config.yaml.

    Raises:
        RunsError: nothing was evaluated there yet.
    """
    task, metrics = task_of_run(folder), read_metrics(folder)
    if not any(task.metric in record for record in metrics):
        raise RunsError(
            f"{folder}/metrics.json has no {task.metric}: nothing was evaluated there yet"
        )
    config = config_of_run(folder)
    last = config["SOLVER"]["MAX_ITER"]  # the evaluation after training is written one later

    def over_iterations(name: str) -> dict[int, float]:
        return {min(r["iteration"] + 1, last): r[name] for r in metrics if name in r}

    names = (f"{task.kind}/{name}" for name in task.presentation.summary)
    times = [record["time"] for record in metrics if "time" in record]
    return Run(
        label=label,
        seed=config["SEED"],
        ap=over_iterations(task.metric),
        metric=task.metric.rpartition("/")[2],
        num_groups=config["MODEL"]["DETR"]["NUM_GROUPS"],
        epoch_iters=next(
            ((r["iteration"] + 1) / r["epoch"] for r in metrics if r.get("epoch")), None
        ),
        seconds=float(np.median(times)) if times else None,
        summary={name: over_iterations(name) for name in names},
    )


def task_of_run(folder: Path) -> Task:
    """The task of the model that was trained in a folder; boxes where it has no config.yaml."""
    if not (folder / "config.yaml").is_file():
        return BOXES
    architecture = META_ARCH_REGISTRY.get(config_of_run(folder)["MODEL"]["META_ARCHITECTURE"])
    return architecture.task


def config_of_run(folder: Path) -> dict:
    """Reads the configuration that a run left in its folder.

    Raises:
        RunsError: naming the file: it is no configuration of this package.
    """
    path = folder / "config.yaml"
    try:
        config = load_mapping(path)
    except YamlError as error:
        raise RunsError(str(error)) from error
    known = [name for name, cls in META_ARCH_REGISTRY if getattr(cls, "task", None)]
    try:
        model, last = config["MODEL"], config["SOLVER"]["MAX_ITER"]
        numbers = (config["SEED"], last, model["DETR"]["NUM_GROUPS"])
        is_ours = model["META_ARCHITECTURE"] in known
    except (KeyError, TypeError):
        is_ours = False
    if not is_ours or not all(isinstance(x, int) for x in numbers):
        raise RunsError(f"{path} is no configuration of a training of this package")
    return config


def by_label(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Groups runs that differ in their seed alone; labels keep their order."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(run.label, []).append(run)
    return together


def metric_of(runs: Iterable[Run]) -> str:
    """Returns the name of the metric that all runs have.

    Raises:
        RunsError: some have another one, so that they cannot be compared.
    """
    labels = {run.metric: run.label for run in runs}
    if len(labels) > 1:
        named = ", ".join(f"{metric} of {label!r}" for metric, label in labels.items())
        raise RunsError(f"these runs have different metrics, and cannot be compared: {named}")
    return next(iter(labels), "AP")


def mean_curve(runs: list[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the iterations that all runs have, and mean and deviation of the AP there.

    The deviation is that of a sample (n - 1); NaN for a single run.
    """
    common = sorted(set.intersection(*(set(run.ap) for run in runs)))
    values = np.array([[run.ap[i] for i in common] for run in runs], dtype=float)  # (runs, points)
    spread = values.std(0, ddof=1) if len(runs) > 1 else np.full(len(common), np.nan)
    return np.array(common), values.mean(0), spread


def mean_and_spread(values: list[float]) -> str:
    """Formats values as ``12.3 ± 0.4`` with the deviation of a sample; one value has none."""
    if len(values) < 2:
        return f"{np.mean(values):.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def split_label(text: str) -> tuple[str, str]:
    """Splits ``LABEL=PATH``; a path alone is called by its last two parts.

    Labels and paths may hold signs of equality themselves: what is behind the label has to exist.
    """
    if not Path(text).exists():
        parts = text.split("=")
        splits = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
        existing = [(label, path) for label, path in splits if Path(path).exists()]
        if splits:
            return (existing or splits[-1:])[0]
    return "/".join(Path(text).parts[-2:]), text
