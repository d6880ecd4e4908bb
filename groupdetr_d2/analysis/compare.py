"""Compares trainings, also running ones: curves, best AP, and the keys that differ."""

import argparse
import sys
from pathlib import Path

import yaml
from tabulate import tabulate

from ..engine.launch import report_errors
from ..errors import UserError
from ..evaluation.metrics_file import read_metrics
from ..tables import write_csv
from .output import COLOURS, new_figure, save_figure

METRICS = {"AP": "bbox/AP", "AP50": "bbox/AP50"}
IGNORED = ("OUTPUT_DIR", "VERSION")


def main(argv: list[str]) -> int:
    """Prints a table; writes compare.png and compare.csv."""
    parser = argparse.ArgumentParser(prog="groupdetr_d2 compare", description=__doc__)
    parser.add_argument("folders", nargs="+", help="output folders of train_net.py")
    parser.add_argument("--out", default="comparison", help="folder for what is written")
    args = parser.parse_args(argv)
    with report_errors():
        folders = [Path(folder) for folder in args.folders]
        runs = {name: read_run(f) for name, f in zip(labels(folders), folders, strict=True)}
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        rows = [{"run": name, **summary(records)} for name, records in runs.items()]
        write_csv(out / "compare.csv", rows)
        draw(runs, out / "compare.png")
        sys.stdout.write(tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="simple") + "\n")
        sys.stdout.write(differences(dict(zip(runs, folders, strict=True))))
        sys.stdout.write(f"{out} holds compare.png and compare.csv\n")
    return 0


def labels(folders: list[Path]) -> list[str]:
    """Names of folders, with as much of their paths as tells them apart."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def read_run(folder: Path) -> list[dict]:
    """The records of metrics.json.

    Raises:
        UserError: there are none.
    """
    records = read_metrics(folder)
    if not records:
        raise UserError(f"{folder} has no metrics.json: it is no output folder of a training")
    return records


def summary(records: list[dict]) -> dict:
    """Length, last loss, last and best AP, seconds an iteration."""
    trained = [r for r in records if "total_loss" in r]
    row = {"iterations": trained[-1]["iteration"] + 1 if trained else 0}
    row["loss"] = trained[-1]["total_loss"] if trained else None
    for name, key in METRICS.items():
        values = [r[key] for r in records if key in r]
        row[name] = values[-1] if values else None
        row[f"best {name}"] = max(values) if values else None
    times = sorted(r["time"] for r in records if "time" in r)
    row["s/iteration"] = times[len(times) // 2] if times else None
    return row


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    """Loss and AP over epochs, or over iterations where a run does not say its epochs."""
    has_epochs = all("epoch" in records[-1] for records in runs.values())
    along = "epoch" if has_epochs else "iteration"
    figure, left = new_figure("training loss", along, "loss", (11, 4.2))
    left.set_position([0.07, 0.12, 0.4, 0.78])
    right = figure.add_axes([0.56, 0.12, 0.4, 0.78])
    right.set(title="AP", xlabel=along, ylabel="AP")
    right.grid(alpha=0.3)
    for i, (name, records) in enumerate(runs.items()):
        colour = COLOURS[i % len(COLOURS)]
        for axes, key, marker in ((left, "total_loss", None), (right, METRICS["AP"], ".")):
            points = [(r[along], r[key]) for r in records if key in r and along in r]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name)
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize=8)
    save_figure(figure, path)


def differences(folders: dict[str, Path]) -> str:
    """The keys of config.yaml that are not the same in all runs, as a table."""
    configs = {
        name: flatten(yaml.safe_load((folder / "config.yaml").read_text()))
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
    """Nested keys joined with dots."""
    flat: dict = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
