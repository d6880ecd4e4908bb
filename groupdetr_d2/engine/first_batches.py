"""A picture of the batches that a training begins with."""

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.engine import HookBase

from ..evaluation.drawing import sheet
from ..tasks.task import Task

logger = logging.getLogger(__name__)
FIRST_BATCHES, FIRST_IMAGES = 2, 16


class FirstBatchesHook(HookBase):
    """Draws the first batches as the model got them, which shows most mistakes in the data.

    A training that fails in its first iteration leaves the picture, too.

    Args:
        names: of the classes.
        image_format: RGB or BGR.
        path: where the picture is written.
    """

    def __init__(self, task: Task, names: Sequence[str], image_format: str, path: Path):
        self.task, self.names, self.image_format, self.path = task, names, image_format, path
        self.batches: list[list[dict]] = []
        self.is_done = False

    def before_train(self) -> None:
        """Leaves a resumed training alone."""
        self.is_done = self.trainer.start_iter > 0

    def after_step(self) -> None:
        """Keeps a batch, and draws when there are enough."""
        if not self.is_done:
            self.batches.append(self.trainer.last_batch)
            if len(self.batches) == FIRST_BATCHES:
                self._draw()

    def after_train(self) -> None:
        """Draws what there is if the training ended early."""
        if not self.is_done:
            self.batches += [self.trainer.last_batch] if not self.batches else []
            self._draw()

    def _draw(self) -> None:
        self.is_done = True
        items = [item for batch in self.batches for item in batch]
        self.batches = []
        try:
            tiles = [self._tile(item) for item in items[:FIRST_IMAGES]]
            if tiles:
                cv2.imwrite(str(self.path), sheet(tiles, columns=self.task.presentation.columns))
        except Exception as error:  # a mapper of the user's own may give anything
            logger.warning("%s cannot be drawn (%r); the training goes on", self.path, error)

    def _tile(self, item: dict) -> np.ndarray:
        picture = self.task.picture_of(item, self.image_format)
        title = Path(item.get("file_name", "")).name[-40:]
        return self.task.presentation.tile(title, picture, item["instances"], self.names)
