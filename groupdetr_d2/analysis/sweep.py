"""Runs a list of trainings, and shows what AP they end with (the paper's Figures 9 and 10).

    analyze sweep --config-file F --key MODEL.DETR.NUM_GROUPS --values 1 3 5 11 --seeds 0 1 2 \\
        --results results.json --out folder [KEY VALUE ...]
    analyze sweep --run "label: config.yaml KEY VALUE ..." --run ... --seeds 0 1 2 --results ...

A run that is in the results file is not run again, one that was interrupted is resumed.
"""

import argparse
import datetime
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from ..engine.setup import build_config
from ..errors import UserError
from .output import new_figure, save_figure, write_csv
from .runs import Run, by_label, mean_and_spread, read_folder, read_runs

logger = logging.getLogger(__name__)
PACKAGES = ("torch", "torchvision", "numpy", "detectron2")


@dataclass(frozen=True)
class Job:
    """A training to be run."""

    label: str
    config: str
    opts: tuple[str, ...]
    seed: int

    def is_recorded_by(self, record: dict) -> bool:
        """Whether a record of the results file is this job's."""
        own = asdict(self)
        return all(record.get(key) == json.loads(json.dumps(own[key])) for key in own)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Beside --out and the overrides."""
    parser.add_argument("--config-file", help="with --key and --values")
    parser.add_argument("--key", help="the configuration key to vary")
    parser.add_argument("--values", nargs="+", help="its values")
    parser.add_argument(
        "--run", action="append", default=[], metavar="'LABEL: CONFIG [KEY VALUE ...]'"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", required=True, help="JSON file that results are added to")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, on a CPU")
    parser.add_argument(
        "--minutes", type=float, default=0, help="start none after so long; 0: no limit"
    )


def run(args: argparse.Namespace) -> str:
    """Trains what is missing, then draws everything that the list names."""
    jobs = list_jobs(args)
    out, results = Path(args.out), Path(args.results)
    done = load_results(results)
    missing = [job for job in jobs if not any(job.is_recorded_by(r) for r in done["runs"])]
    logger.info("%d trainings, %d of them to be run", len(jobs), len(missing))
    deadline = datetime.datetime.now() + datetime.timedelta(minutes=args.minutes or 1e6)
    failed = []
    with ThreadPoolExecutor(args.jobs) as pool:
        started = {pool.submit(train, job, out, args.jobs, deadline): job for job in missing}
        for future in as_completed(started):
            if future.result() is None:
                failed.append(started[future])
                continue
            done["runs"].append(future.result())
            save_results(results, done)
    recorded = read_runs(results) if results.is_file() else []
    finished = [run for run in recorded if any(job.is_recorded_by(run.record) for job in jobs)]
    if not finished:
        raise UserError(f"no training of the sweep has finished; see {out}/*/*/output.txt")
    text = report(finished, args.key or "", out)
    left = ", ".join(f"{job.label} (seed {job.seed})" for job in missing if job in failed)
    return f"{text}; not finished: {left}" if failed else text


def list_jobs(args: argparse.Namespace) -> list[Job]:
    """Every run with every seed, seed by seed, so that an early end leaves whole comparisons.

    Raises:
        UserError: a run is malformed, or there is none.
    """
    runs, opts = [], tuple(args.opts)
    if args.key:
        if not args.config_file or not args.values:
            raise UserError("--key needs --config-file and --values")
        for value in args.values:
            runs.append((f"{args.key.split('.')[-1]} {value}", args.config_file, (args.key, value)))
    for text in args.run:
        label, colon, command = text.partition(":")
        if not colon or not command.strip():
            raise UserError(f"--run {text!r} is not of the form 'LABEL: CONFIG [KEY VALUE ...]'")
        config, *own = shlex.split(command)
        runs.append((label.strip(), config, tuple(own)))
    if not runs:
        raise UserError("nothing to run: give --key and --values, or --run")
    for _, config, own in runs:
        build_config(config, [*own, *opts])  # a mistake shows before the first run
    return [Job(label, c, own + opts, seed) for seed in args.seeds for label, c, own in runs]


def train(job: Job, out: Path, num_jobs: int, deadline: datetime.datetime) -> dict | None:
    """Runs or resumes a training in its own folder; its record, or None if it failed."""
    if datetime.datetime.now() > deadline:
        return None
    folder = out / re.sub(r"[^\w.=-]+", "_", job.label) / f"seed_{job.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    opts = [*job.opts, "SEED", str(job.seed), "OUTPUT_DIR", str(folder)]
    command = [sys.executable, "-W", "ignore", "-m", "groupdetr_d2", "train", "--resume"]
    threads = max(1, (os.cpu_count() or 1) // num_jobs)
    with (folder / "output.txt").open("a") as output:
        code = subprocess.run(
            [*command, "--config-file", job.config, *opts],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        ).returncode
    if code:
        logger.error(
            "%s, seed %d failed (exit code %d): %s", job.label, job.seed, code, output.name
        )
        return None
    record = make_record(job, read_folder(folder, job.label), threads)
    logger.info("%s, seed %d: AP %.1f", job.label, job.seed, record["AP"][max(record["AP"])])
    return record


def make_record(job: Job, run: Run, threads: int) -> dict:
    """What the results file keeps of a run."""
    cfg = build_config(job.config, list(job.opts))
    return {
        **asdict(job),
        "opts": list(job.opts),
        "num_groups": cfg.MODEL.DETR.NUM_GROUPS,
        "epoch_iters": run.epoch_iters,
        "AP": run.ap,
        "seconds_per_iteration": run.seconds,
        "versions": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{describe_machine()}, {threads} threads a training",
        "date": datetime.date.today().isoformat(),
    }


def version_of(name: str) -> str:
    """Of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def describe_machine() -> str:
    """The GPU, or the kind of processor and the number of its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {platform.machine()}"


def load_results(path: Path) -> dict:
    """The content of a results file; an empty one if there is none."""
    if not path.is_file():
        return {"runs": []}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no results file: {error}") from error


def save_results(path: Path, results: dict) -> None:
    """A line a run; an interrupted write leaves the file as it was."""
    lines = ",\n  ".join(json.dumps(record) for record in results["runs"])
    rest = {key: value for key, value in results.items() if key != "runs"}
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in rest.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(f'{{\n{head} "runs": [\n  {lines}\n ]\n}}\n')
    os.replace(unfinished, path)


def report(runs: list[Run], key: str, out: Path) -> str:
    """Draws the last AP of every label, and writes it as CSV."""
    rows, values = [], {}
    for label, same in by_label(runs).items():
        values[label] = [run.final_ap for run in same]
        spread = np.std(values[label], ddof=1) if len(same) > 1 else float("nan")
        times = [run.seconds for run in same if run.seconds]
        rows.append(
            {
                "label": label,
                "seeds": len(same),
                "AP": float(np.mean(values[label])),
                "deviation": spread,
                "seconds per iteration": float(np.mean(times)) if times else float("nan"),
            }
        )
    write_csv(out / "sweep.csv", rows)
    figure, axes = new_figure("AP of the last evaluation", key, "AP")
    places = _places([row["label"] for row in rows], key)
    axes.errorbar(
        places,
        [r["AP"] for r in rows],
        [r["deviation"] for r in rows],
        marker="o",
        capsize=3,
        linestyle="-" if key else "none",
    )
    if not key:
        axes.set_xticks(places, [row["label"] for row in rows], rotation=30, ha="right")
    save_figure(figure, out / "sweep.png")
    return "; ".join(f"{label}: {mean_and_spread(v)}" for label, v in values.items())


def _places(labels: list[str], key: str) -> list[float]:
    """Where a label stands on the x axis: at its number, if the labels are values of a key."""
    numbers = [label.split()[-1] for label in labels]
    if key and all(re.fullmatch(r"-?[\d.]+", number) for number in numbers):
        return [float(number) for number in numbers]
    return list(range(len(labels)))
