"""Runs a list of trainings, and draws their final AP (the paper's Figures 9 and 10).

    analyze sweep --config-file F --key MODEL.DETR.NUM_GROUPS --values 1 3 5 11 --seeds 0 1 2 \\
        --results results.json --out folder [KEY VALUE ...]
    analyze sweep --run "label: config.yaml KEY VALUE ..." --run ... --seeds 0 1 2 --results ...

A run that is in the results file is not run again, one that was interrupted is resumed.
"""

import argparse
import datetime
import hashlib
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..config import build_config
from ..errors import UserError
from .output import new_figure, save_figure, write_csv
from .results_file import PACKAGES, describe_machine, load_results, save_results, version_of
from .runs import Run, by_label, mean_and_spread, metric_of, read_folder, run_of

logger = logging.getLogger(__name__)
# where a training runs and where its data lie: nothing that its result depends on
ELSEWHERE = re.compile(
    r"^(MODEL\.DEVICE|DATALOADER\.NUM_WORKERS|DATASETS\.CUSTOM\.\w+_(JSON|IMAGES))$"
)


@dataclass(frozen=True)
class Job:
    """A training to be run."""

    label: str
    config: str
    opts: tuple[str, ...]
    seed: int

    @staticmethod
    def of(record: dict) -> "Job":
        """Makes the job of a record of the results file."""
        return Job(record["label"], record["config"], tuple(record["opts"]), record["seed"])

    @property
    def identity(self) -> tuple:
        """A value that is the same for this training on another machine, with files elsewhere."""
        pairs = zip(self.opts[::2], self.opts[1::2], strict=True)
        opts = [
            (key, Path(value).name if key == "MODEL.WEIGHTS" else value)
            for key, value in pairs
            if not ELSEWHERE.match(key)
        ]
        return self.label, self.config.rpartition("configs/")[2], tuple(opts), self.seed

    def folder(self, out: Path) -> Path:
        """The job's own folder; another configuration under the same label has another one."""
        opts = [word for pair in self.identity[2] for word in pair]
        content = build_config(self.config, opts).dump()
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        return out / f"{re.sub(r'[^a-zA-Z0-9.-]+', '_', self.label)}_{digest}" / f"seed_{self.seed}"


def run(args: argparse.Namespace) -> str:
    """Trains what is missing, then draws everything that the list names."""
    jobs = list_jobs(args)
    out, results = Path(args.out), Path(args.results)
    done = load_results(results)
    known = {Job.of(record).identity for record in done["runs"]}
    missing = [job for job in jobs if job.identity not in known]
    logger.info("%d trainings, %d of them to be run", len(jobs), len(missing))
    failed = set()
    with ThreadPoolExecutor(args.jobs) as pool:
        end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
        started = {pool.submit(train, job, args, end): job for job in missing}
        try:
            for future in as_completed(started):
                if future.result() is None:
                    failed.add(started[future])
                    continue
                done["runs"].append(future.result())
                save_results(results, done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    order = {job.identity: i for i, job in enumerate(jobs)}
    runs = [run for run in map(run_of, done["runs"]) if Job.of(run.record).identity in order]
    if not runs and end is not None and time.monotonic() >= end:
        return f"no training has finished in {args.minutes:g} minutes; the same command goes on"
    if not runs:
        raise UserError(f"no training of the sweep has finished; see {out}/*/*/output.txt")
    runs.sort(key=lambda run: order[Job.of(run.record).identity])
    text = report(runs, args.key or "", out)
    left = ", ".join(f"{job.label} (seed {job.seed})" for job in missing if job in failed)
    return f"{text}; not finished: {left}" if failed else text


def list_jobs(args: argparse.Namespace) -> list[Job]:
    """Lists every run with every seed, seed by seed: an early end leaves whole comparisons.

    Raises:
        UserError: a run is malformed, or there is none.
    """
    runs: list[tuple[str, str, tuple[str, ...]]] = []
    opts = tuple(args.opts)
    if args.key:
        if not args.config_file or not args.values:
            raise UserError("--key needs --config-file and --values")
        for value in args.values:
            runs.append((f"{args.key.split('.')[-1]} {value}", args.config_file, (args.key, value)))
    for text in args.run:
        label, colon, command = text.partition(":")
        if not colon or not command.strip():
            raise UserError(f"--run {text!r} is not of the form 'LABEL: CONFIG [KEY VALUE ...]'")
        config, *words = shlex.split(command)
        runs.append((label.strip(), config, tuple(words)))
    if not runs:
        raise UserError("nothing to run: give --key and --values, or --run")
    for _, config, own in runs:
        build_config(config, [*own, *opts])  # a mistake shows before the first run
    return [Job(label, c, own + opts, seed) for seed in args.seeds for label, c, own in runs]


def train(job: Job, args: argparse.Namespace, end: float | None) -> dict | None:
    """Runs or resumes a training in its folder; returns its record, None if it did not finish."""
    if end is not None and time.monotonic() > end:
        return None
    folder = job.folder(Path(args.out))
    folder.mkdir(parents=True, exist_ok=True)
    opts = [*job.opts, "SEED", str(job.seed), "OUTPUT_DIR", str(folder)]
    command = [sys.executable, "-W", "ignore", "-m", "groupdetr_d2", "train", "--resume"]
    command += ["--num-gpus", str(args.num_gpus), "--config-file", job.config, *opts]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            process.wait(None if end is None else max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.info("%s, seed %d: time is over, to be resumed", job.label, job.seed)
        finally:
            process.terminate()
    if process.wait():
        logger.error("%s, seed %d did not finish: see %s", job.label, job.seed, output.name)
        return None
    try:
        record = make_record(job, read_folder(folder, job.label), threads)
    except UserError as error:
        logger.error("%s, seed %d: %s", job.label, job.seed, error)
        return None
    logger.info("%s, seed %d: %.1f", job.label, job.seed, record["AP"][max(record["AP"])])
    return record


def make_record(job: Job, run: Run, threads: int) -> dict:
    """Makes the record of a run for the results file."""
    cfg = build_config(job.config, list(job.opts))
    return {
        **asdict(job),
        "opts": list(job.opts),
        "num_groups": cfg.MODEL.DETR.NUM_GROUPS,
        "epoch_iters": run.epoch_iters,
        "metric": run.metric,
        "AP": run.ap,
        "summary": run.summary,
        "seconds_per_iteration": run.seconds,
        "versions": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{describe_machine()}, {threads} thread{'s' * (threads > 1)} a training",
        "date": datetime.date.today().isoformat(),
    }


def report(runs: list[Run], key: str, out: Path) -> str:
    """Draws the last AP, or other metric, of every label, and writes it as CSV."""
    metric = metric_of(runs)
    rows: list[dict] = []
    values: dict[str, list[float]] = {}
    for label, same in by_label(runs).items():
        values[label] = [run.final_ap for run in same]
        spread = np.std(values[label], ddof=1) if len(same) > 1 else float("nan")
        times = [run.seconds for run in same if run.seconds]
        rows.append(
            {
                "label": label,
                "seeds": len(same),
                metric: float(np.mean(values[label])),
                "deviation": spread,
                "seconds per iteration": float(np.mean(times)) if times else float("nan"),
            }
        )
    write_csv(out / "sweep.csv", rows)
    figure, axes = new_figure(f"{metric} of the last evaluation", key, metric)
    places = _places([row["label"] for row in rows], key)
    axes.errorbar(
        places,
        [r[metric] for r in rows],
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
    """Positions of the labels on the x axis: their numbers, if they are values of a key."""
    numbers = [label.split()[-1] for label in labels]
    if key and all(re.fullmatch(r"-?[\d.]+", number) for number in numbers):
        return [float(number) for number in numbers]
    return list(range(len(labels)))
