"""The interface to a package that shows runs, and what several of them need."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import numpy as np
from detectron2.utils.events import get_event_storage

DEFAULT_PROJECT = "groupdetr_d2"
WINDOW = 20  # iterations whose median is written, as in metrics.json


class Ending(Enum):
    """The ways in which a training ends."""

    FINISHED = "finished"
    STOPPED = "stopped by a signal"
    FAILED = "failed"


class Sink(ABC):
    """One package that scalars, pictures and results are written to.

    Any method may raise what the package raises: the logger that owns the sink takes care of it.
    """

    @abstractmethod
    def open(self, known: str | None, start_iter: int) -> str | None:
        """Begins a run, or goes on with one.

        Args:
            known: identifier of the run that is resumed; None for a new one.
            start_iter: number of iterations done before.

        Returns:
            the identifier of the run, if the package has such.
        """

    @abstractmethod
    def write(self) -> None:
        """Writes the scalars of Detectron2's storage that are new."""

    @abstractmethod
    def write_pictures(self, pictures: dict[str, np.ndarray], iteration: int) -> None:
        """Writes pictures (H, W, 3) RGB by their names."""

    @abstractmethod
    def write_results(self, numbers: dict[str, float], files: Sequence[Path], step: int) -> None:
        """Writes the numbers that sum the run up, and the files that show it."""

    @abstractmethod
    def close(self, ending: Ending) -> None:
        """Ends the run."""


class NewScalars:
    """The scalars of Detectron2's storage that have not been taken yet, with its smoothing."""

    def __init__(self) -> None:
        self.last = -1

    def take(self) -> dict[int, dict[str, float]]:
        """Returns new values by iteration and name."""
        found: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self.last:
                found[iteration][name] = value
        self.last = max(found, default=self.last)
        return dict(sorted(found.items()))
