"""A logger of a run, which the training calls: it keeps its run's identifier, and never fails."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from detectron2.utils.events import EventWriter

from ...checkpoint.files import write_safely
from ...errors import UserError
from .sink import Ending, Sink

logger = logging.getLogger(__name__)
IDENTIFIERS = "loggers.json"  # {name: identifier of the run}
PATIENCE = 3  # failures in succession after which a logger is given up


class LoggerError(UserError):
    """A logger cannot begin or go on with its run; the message names it and the remedy."""


class RunLogger(EventWriter):
    """Hands what a training writes to a sink, if it is open.

    A failure, such as a server that cannot be reached, is a warning: the training goes on. After
    three in succession the rest of the run is not written there.

    Args:
        name: the sink's, as in LOGGERS.
        folder: the output folder, which keeps the identifier for a resumed run.
    """

    def __init__(self, name: str, sink: Sink, folder: str):
        self.name, self.sink, self.folder = name, sink, Path(folder)
        self.is_open, self.failures = False, 0

    def open(self, start_iter: int) -> None:
        """Begins a new run, or goes on with that of the output folder if it is resumed.

        Raises:
            LoggerError: the sink cannot begin.
        """
        path = self.folder / IDENTIFIERS
        known = read_identifiers(path)
        try:
            identifier = self.sink.open(known.get(self.name) if start_iter else None, start_iter)
        except Exception as error:  # every package has errors of its own
            text = " ".join(str(error).split()) or type(error).__name__
            raise LoggerError(
                f"{self.name}, which LOGGERS names, cannot write this run: {text[:600]}"
            ) from error
        if identifier is not None:
            write_safely(str(path), json.dumps({**known, self.name: identifier}, indent=1) + "\n")
        self.is_open, self.failures = True, 0

    def write(self) -> None:
        """Writes the scalars that are new; Detectron2's PeriodicWriter calls it."""
        self._try(self.sink.write)

    def write_pictures(self, pictures: dict[str, np.ndarray], iteration: int) -> None:
        """Writes pictures (H, W, 3) RGB by their names."""
        self._try(lambda: self.sink.write_pictures(pictures, iteration))

    def finish(
        self, ending: Ending, numbers: dict[str, float], files: Sequence[Path], step: int
    ) -> None:
        """Writes results and ends the run. Detectron2's `close` comes before the report."""
        self._try(lambda: self.sink.write_results(numbers, files, step))
        self._try(lambda: self.sink.close(ending))
        self.is_open = False

    def _try(self, work: Callable[[], None]) -> None:
        if not self.is_open:
            return
        try:
            work()
            self.failures = 0
        except Exception as error:  # every package has errors of its own
            self.failures += 1
            self.is_open = self.failures < PATIENCE
            what = "the training goes on" if self.is_open else "the rest is not written there"
            logger.warning("%s could not be written to (%r); %s", self.name, error, what)


def read_identifiers(path: Path) -> dict[str, str]:
    """Reads the identifiers of the runs that a folder's training is written to."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s): new runs begin", path, error)
        return {}
    is_known = isinstance(content, dict) and all(isinstance(x, str) for x in content.values())
    return content if is_known else {}
