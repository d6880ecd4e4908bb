"""Weights & Biases; its own environment variables choose account, project and mode."""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode

from .sink import DEFAULT_PROJECT, Ending, NewScalars, Sink

logger = logging.getLogger(__name__)
AXIS = "iteration"


class WandbSink(Sink):
    """Writes to a run of Weights & Biases.

    Every record names its iteration, which is the axis of all curves: W&B's own steps cannot go
    back, and a resumed run begins at its checkpoint.
    """

    def __init__(self, cfg: CfgNode):
        self.config: dict = yaml.safe_load(cfg.dump())
        self.folder, self.new = Path(cfg.OUTPUT_DIR), NewScalars()
        self.run: Any = None

    def open(self, known: str | None, start_iter: int) -> str:
        """Begins a run named like the output folder, or goes on with the known one."""
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
            name=os.environ.get("WANDB_NAME", self.folder.resolve().name),
            dir=str(self.folder),
            config=self.config,
            id=known,
            resume="allow",
            allow_val_change=True,  # a resumed run may have other keys
            settings=wandb.Settings(console="off"),  # the terminal is the training's own
        )
        self.run.define_metric(AXIS)
        self.run.define_metric("*", step_metric=AXIS)
        logger.info("Weights & Biases: run %s, %s", self.run.id, self.run.url or self.run.dir)
        return self.run.id

    def write(self) -> None:
        """Writes one record per iteration."""
        for iteration, values in self.new.take().items():
            self.run.log({**values, AXIS: iteration})

    def write_pictures(self, pictures: dict[str, np.ndarray], iteration: int) -> None:
        """Writes the pictures as one record."""
        import wandb

        images = {name: wandb.Image(picture) for name, picture in pictures.items()}
        self.run.log({**images, AXIS: iteration})

    def write_results(self, numbers: dict[str, float], files: Sequence[Path], step: int) -> None:
        """Writes the numbers to the run's summary, and copies of the files to its own."""
        self.run.summary.update(numbers)
        for file in files:
            copied = shutil.copy(file, self.run.dir)  # W&B would link it, and say so each time
            self.run.save(copied, base_path=self.run.dir, policy="now")

    def close(self, ending: Ending) -> None:
        """Ends the run, as failed unless it finished; W&B waits until all is sent."""
        self.run.finish(exit_code=int(ending is not Ending.FINISHED))
