"""Comparison of trainings, also running ones: curves, best result, and the keys that differ."""

import sys
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from ..checkpoint.stripping import stripped_note
from ..errors import UserError
from ..evaluation.metrics_file import read_metrics
from ..evaluation.training_curves import (
    VALIDATION,
    draw_losses,
    epochs_of_iteration,
    name_axes,
    plot,
    points_of,
)
from ..tables import write_csv
from ..tasks.task import Task
from .output import COLOURS
from .runs import config_of_run, task_of_run

IGNORED = ("OUTPUT_DIR", "VERSION")
SHOWN_CLASSES = 20  # with more of them, the AP of classes stands in the file alone


def compare(names: list[str], out_folder: str) -> int:
    """Prints a table of the trainings in these folders; writes compare.png and compare.csv."""
    folders, out = [Path(name) for name in names], Path(out_folder)
    runs = {name: read_run(f) for name, f in zip(labels(folders), folders, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    task = common_task(folders)
    rows = [{"run": name, **summary(records, task)} for name, records in runs.items()]
    others = {name: other_metrics(records, task) for name, records in runs.items()}
    names = names_of(others)
    write_csv(
        out / "compare.csv",
        [{**row, **{name: others[row["run"]].get(name) for name in names}} for row in rows],
    )
    draw(runs, task.metric, out / "compare.png")
    sys.stdout.write(tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="simple") + "\n")
    sys.stdout.write(table_of_others(others))
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
    """Sums a run up: length, last losses, last and best metrics, seconds per iteration."""
    trained = [r for r in records if "total_loss" in r]
    row = {"iterations": trained[-1]["iteration"] + 1 if trained else 0}
    row["loss"] = trained[-1]["total_loss"] if trained else None
    validation = f"{VALIDATION}/total_loss"
    checked = [r[validation] for r in records if validation in r]
    row["validation loss"] = checked[-1] if checked else None
    for key in task.compared:
        name = key.partition("/")[2]
        values = [r[key] for r in records if key in r]
        row[name] = values[-1] if values else None
        row[f"best {name}"] = max(values) if values else None
    times = sorted(r["time"] for r in records if "time" in r)
    row["s/iteration"] = times[len(times) // 2] if times else None
    return row


def other_metrics(records: list[dict], task: Task) -> dict[str, float]:
    """Returns the last of each metric that :func:`summary` leaves out, such as AP of classes."""
    prefix = task.metric.partition("/")[0] + "/"
    last: dict[str, float] = {}
    for record in records:
        last |= {key: x for key, x in record.items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): x for key, x in last.items() if key not in task.compared}


def names_of(others: dict[str, dict[str, float]]) -> list[str]:
    """Lists the metrics that any of the runs has."""
    return list(dict.fromkeys(name for metrics in others.values() for name in metrics))


def table_of_others(others: dict[str, dict[str, float]]) -> str:
    """Formats :func:`other_metrics` of runs, a metric in a row; empty if there are none."""
    names = names_of(others)
    if sum(name.startswith("AP-") for name in names) > SHOWN_CLASSES:
        names = [name for name in names if not name.startswith("AP-")]
    rows = [[name, *(metrics.get(name) for metrics in others.values())] for name in names]
    if not rows:
        return ""
    table = tabulate(rows, headers=["last", *others], floatfmt=".2f", tablefmt="simple")
    return f"\n{table}\n\n"


def draw(runs: dict[str, list[dict]], metric: str, path: Path) -> None:
    """Draws loss and metric over epochs, or over iterations where a run has no epochs.

    Losses on the test sets are dashed. The names of the runs stand below both.
    """
    figure = new_comparison(runs, metric)
    figure.savefig(path, dpi=110)


def new_comparison(runs: dict[str, list[dict]], metric: str) -> Figure:
    """Makes the figure of :func:`draw`."""
    scales = {name: epochs_of_iteration(records) for name, records in runs.items()}
    has_epochs = None not in scales.values()
    legend_rows = -(-len(runs) // legend_columns(runs))
    figure = Figure(figsize=(11, 4.2 + 0.22 * legend_rows), layout="constrained")
    left, right = figure.subplots(1, 2)
    name = metric.partition("/")[2]
    for axes, title in ((left, "loss (dashed: validation)"), (right, name)):
        name_axes(axes, title, 1.0 if has_epochs else None)
    for i, (run, records) in enumerate(runs.items()):
        scale = scales[run] if has_epochs else None
        look = {"color": COLOURS[i % len(COLOURS)], "alpha": 0.6 if i >= len(COLOURS) else 1.0}
        draw_losses(left, records, scale, label=run, **look)
        plot(right, points_of(records, metric, scale), run, marker=".", **look)
        left.plot([], [], label=run, **look)  # a name in the legend, whatever the run has
    shown = [line for line in left.lines if line.get_label() in runs]
    figure.legend(handles=shown, loc="outside lower center", ncols=legend_columns(runs), fontsize=8)
    return figure


def legend_columns(runs: dict[str, list[dict]]) -> int:
    """Chooses how many names of runs stand side by side below the figure."""
    longest = max(len(name) for name in runs)
    return max(1, min(len(runs), 120 // (longest + 8)))


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
