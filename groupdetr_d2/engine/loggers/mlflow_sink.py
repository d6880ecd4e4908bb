"""MLflow; its own environment variables choose store and experiment."""

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode

from .sink import DEFAULT_PROJECT, Ending, NewScalars, Sink

logger = logging.getLogger(__name__)
STATUS = {Ending.FINISHED: "FINISHED", Ending.STOPPED: "KILLED", Ending.FAILED: "FAILED"}
BATCH, LONGEST_NAME, LONGEST_VALUE = 100, 250, 500  # what stores of any version take
FORBIDDEN = re.compile(r"[^\w\-. :/]")  # in names of metrics


class MlflowSink(Sink):
    """Writes to a run of MLflow by its client, which leaves a script's own active run alone."""

    def __init__(self, cfg: CfgNode):
        self.text, self.folder = cfg.dump(), Path(cfg.OUTPUT_DIR)
        self.new = NewScalars()
        self.client: Any = None
        self.run = ""

    def open(self, known: str | None, start_iter: int) -> str:
        """Begins a run named like the output folder, or goes on with the known one.

        Raises:
            ValueError: the store has no such run.
        """
        from mlflow import MlflowClient, get_tracking_uri

        self.client, store = MlflowClient(), get_tracking_uri()
        if known:
            self._go_on(known, store)
        else:
            name = self.folder.resolve().name
            tags = {"mlflow.user": os.environ.get("USER", "unknown")}
            begun = self.client.create_run(self._experiment(), tags=tags, run_name=name)
            self.run = begun.info.run_id
        self._write_configuration()
        logger.info("MLflow: run %s in %s", self.run, store)
        return self.run

    def _go_on(self, known: str, store: str) -> None:
        try:
            is_there = self.client.get_run(known).info.lifecycle_stage == "active"
        except Exception as error:
            raise ValueError(_gone(known, store, error)) from error
        if not is_there:
            raise ValueError(_gone(known, store, "it is deleted"))
        self.run = known
        self.client.update_run(known, status="RUNNING")

    def _experiment(self) -> str:
        chosen = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if chosen:
            return chosen
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_PROJECT)
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def _write_configuration(self) -> None:
        """Writes the keys as parameters, which cannot change: changed ones become tags."""
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(self.run).data.params
        keys = dict(leaves(yaml.safe_load(self.text)))
        params = [Param(key, value) for key, value in keys.items() if key not in known]
        tags = [RunTag(k, v) for k, v in keys.items() if known.get(k, v) != v]
        for start in range(0, max(len(params), len(tags)), BATCH):
            part = slice(start, start + BATCH)
            self.client.log_batch(self.run, params=params[part], tags=tags[part])
        self.client.log_text(self.run, self.text, "config.yaml")

    def write(self) -> None:
        """Writes the values of each iteration."""
        for iteration, values in self.new.take().items():
            self._write_metrics(values, iteration)

    def _write_metrics(self, values: dict[str, float], iteration: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(k), v, now, iteration) for k, v in values.items()]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.run, metrics=metrics[start : start + BATCH])

    def write_pictures(self, pictures: dict[str, np.ndarray], iteration: int) -> None:
        """Writes the pictures as those of a step, which MLflow's page can leaf through."""
        for name, picture in pictures.items():
            self.client.log_image(
                self.run,
                np.ascontiguousarray(picture),
                key=name,
                step=iteration,
                synchronous=True,
            )

    def write_results(self, numbers: dict[str, float], files: Sequence[Path], step: int) -> None:
        """Writes the numbers as metrics and as a file, and the files as artifacts."""
        self._write_metrics(numbers, step)
        self.client.log_dict(self.run, numbers, "results.json")
        for file in files:
            self.client.log_artifact(self.run, str(file))

    def close(self, ending: Ending) -> None:
        """Ends the run with its status."""
        self.client.set_terminated(self.run, STATUS[ending])


def leaves(section: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the keys of a configuration with their values as text."""
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.")
        else:
            yield name, str(value)[:LONGEST_VALUE]


def _allowed(name: str) -> str:
    """A name of a metric that MLflow takes: a class may be called anything."""
    return FORBIDDEN.sub("_", name)[:LONGEST_NAME]


def _gone(run: str, store: str, why: object) -> str:
    return (
        f"run {run}, which loggers.json of the output folder names, cannot be gone on with in "
        f"{store} ({why}): set MLFLOW_TRACKING_URI to the store of that run, or remove "
        "loggers.json to begin another"
    )
