"""Comparison of trainings, also running ones: curves, best result, and the keys that differ."""

import sys
from pathlib import Path

from tabulate import tabulate

from ..checkpoint.stripping import stripped_note
from ..errors import UserError
from ..evaluation.metrics_file import read_metrics
from ..tables import write_csv
from ..tasks.task import Task
from .output import COLOURS, new_figure, save_figure
from .runs import config_of_run, task_of_run

IGNORED = ("OUTPUT_DIR", "VERSION")


def compare(names: list[str], out_folder: str) -> int:
    """Prints a table of the trainings in these folders; writes compare.png and compare.csv."""
    folders, out = [Path(name) for name in names], Path(out_folder)
    runs = {name: read_run(f) for name, f in zip(labels(folders), folders, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    task = common_task(folders)
    rows = [{"run": name, **summary(records, task)} for name, records in runs.items()]
    write_csv(out / "compare.csv", rows)
    draw(runs, task.metric, out / "compare.png")
    sys.stdout.write(tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="simple") + "\n")
    sys.stdout.write(differences(dict(zip(runs, folders, strict=True))))
    sys.stdout.write("".join(f"{note}\n" for folder in folders for note in notes_on(folder)))
    sys.stdout.write(f"{out} holds compare.png and compare.csv\n")
    return 0


def common_task(folders: list[Path]) -> Task:
    """The task of all trainings.

    Raises:
        UserError: they have different ones.
    """
    tasks = {str(folder): task_of_run(folder) for folder in folders}
    if len({task.metric for task in tasks.values()}) > 1:
        metrics = {folder: task.metric for folder, task in tasks.items()}
        raise UserError(f"runs of different tasks cannot be compared: {metrics}")
    return next(iter(tasks.values()))


def labels(folders: list[Path]) -> list[str]:
    """Names folders, with as much of their paths as tells them apart."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def notes_on(folder: Path) -> list[str]:
    """Names the stripped ones among the checkpoints that a run ended with."""
    files = [folder / name for name in ("model_final.pth", "model_best.pth")]
    notes = {file: stripped_note(file) for file in files if file.is_file()}
    return [f"{file} is {note}" for file, note in notes.items() if note]


def read_run(folder: Path) -> list[dict]:
    """Reads the records of metrics.json.

    Raises:
        UserError: there are none.
    """
    if folder.is_file():
        note = stripped_note(folder)
        raise UserError(
            f"{folder} is a file{f' ({note})' if note else ''}: compare takes the output folders "
            "of trainings; `info --weights` describes a checkpoint"
        )
    records = read_metrics(folder)
    if not records:
        raise UserError(f"{folder} has no metrics.json: it is no output folder of a training")
    return records


def summary(records: list[dict], task: Task) -> dict:
    """Sums a run up: length, last loss, last and best metrics, seconds per iteration."""
    trained = [r for r in records if "total_loss" in r]
    row = {"iterations": trained[-1]["iteration"] + 1 if trained else 0}
    row["loss"] = trained[-1]["total_loss"] if trained else None
    for key in task.compared:
        name = key.partition("/")[2]
        values = [r[key] for r in records if key in r]
        row[name] = values[-1] if values else None
        row[f"best {name}"] = max(values) if values else None
    times = sorted(r["time"] for r in records if "time" in r)
    row["s/iteration"] = times[len(times) // 2] if times else None
    return row


def draw(runs: dict[str, list[dict]], metric: str, path: Path) -> None:
    """Draws loss and metric over epochs, or over iterations where a run has no epochs."""
    has_epochs = all("epoch" in records[-1] for records in runs.values())
    along = "epoch" if has_epochs else "iteration"
    figure, left = new_figure("training loss", along, "loss", (11, 4.2))
    left.set_position([0.07, 0.12, 0.4, 0.78])
    right = figure.add_axes([0.56, 0.12, 0.4, 0.78])
    right.set(title=metric, xlabel=along, ylabel=metric)
    right.grid(alpha=0.3)
    for i, (name, records) in enumerate(runs.items()):
        colour = COLOURS[i % len(COLOURS)]
        for axes, key, marker in ((left, "total_loss", None), (right, metric, ".")):
            points = [(r[along], r[key]) for r in records if key in r and along in r]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name)
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize=8)
    save_figure(figure, path)


def differences(folders: dict[str, Path]) -> str:
    """Lists the keys of config.yaml that are not the same in all runs, as a table."""
    configs = {
        name: flatten(config_of_run(folder))
        for name, folder in folders.items()
        if (folder / "config.yaml").is_file()
    }
    keys = sorted(set().union(*configs.values()) if configs else ())
    rows = [
        [key, *(config.get(key, "-") for config in configs.values())]
        for key in keys
        if key not in IGNORED and len({str(c.get(key)) for c in configs.values()}) > 1
    ]
    if not rows:
        return ""
    return "\n" + tabulate(rows, headers=["key", *configs], tablefmt="simple") + "\n"


def flatten(node: dict, prefix: str = "") -> dict:
    """Joins nested keys with dots."""
    flat: dict = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
