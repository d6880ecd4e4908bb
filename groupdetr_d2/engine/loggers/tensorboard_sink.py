"""TensorBoard, by Detectron2's own writer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.events import TensorboardXWriter, get_event_storage

from .sink import WINDOW, Ending, Sink


class TensorboardSink(Sink):
    """Writes scalars, and what `storage.put_image` was given, to the output folder.

    Configuration and results are files there already.
    """

    def __init__(self, cfg: CfgNode):
        self.folder = cfg.OUTPUT_DIR

    def open(self, known: str | None, start_iter: int) -> None:
        """Opens a file of its own; what an earlier attempt wrote beyond the start is hidden."""
        self.writer = TensorboardXWriter(self.folder, WINDOW, purge_step=start_iter)

    def write(self) -> None:
        """Writes scalars, pictures and histograms."""
        self.writer.write()

    def write_pictures(self, pictures: dict[str, np.ndarray], iteration: int) -> None:
        """Leaves the pictures in Detectron2's storage, from where they are written."""
        for name, picture in pictures.items():
            get_event_storage().put_image(name, picture.transpose(2, 0, 1))

    def write_results(self, numbers: dict[str, float], files: Sequence[Path], step: int) -> None:
        """Leaves the results to the report, which stands beside it."""

    def close(self, ending: Ending) -> None:
        """Closes the file."""
        self.writer.close()
