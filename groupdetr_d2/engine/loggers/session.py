"""The loggers of a training from its first iteration to its end."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.engine import HookBase, TrainerBase

from ...evaluation.evaluation_report import Evaluation
from ...evaluation.examples import draw_pair
from ...evaluation.presentation import Presentation
from ...tasks.task import Task
from ..interruption import Interrupted
from .run_logger import RunLogger
from .sink import Ending

logger = logging.getLogger(__name__)
SHOWN_PICTURES = 4
# of the output folder, handed on where the package keeps files
FILES = ("report.html", "per_class.csv", "curves.png", "predictions.png", "log.txt")


@contextlib.contextmanager
def logged(loggers: Sequence[RunLogger], trainer: TrainerBase, folder: Path) -> Iterator[None]:
    """Within, the loggers are open; in the end they get the results, and the files of the run.

    Raises:
        LoggerError: one cannot begin.
    """
    ending = Ending.FAILED
    try:
        for one in loggers:
            one.open(trainer.start_iter)
        yield
        ending = Ending.FINISHED
    except Interrupted:
        ending = Ending.STOPPED
        raise
    finally:
        names = FILES if ending is Ending.FINISHED else ("log.txt",)  # others are older
        files = [folder / name for name in names if (folder / name).is_file()]
        opened = [one for one in loggers if one.is_open]
        numbers = results_of(trainer) if opened else {}
        for one in opened:
            one.finish(ending, numbers, files, int(numbers["iterations"]))


def results_of(trainer: TrainerBase) -> dict[str, float]:
    """The numbers that sum a training up: its length, its last and its best result."""
    numbers = {"iterations": float(trainer.iterations_done)}
    last = trainer.last_evaluation
    if last is not None:
        metrics = trainer.task.metrics_of(last.results)
        numbers |= {f"final/{name}": float(value) for name, value in metrics.items()}
    if trainer.best.value >= 0:
        name = trainer.task.metric.partition("/")[2]
        numbers |= {f"best/{name}": trainer.best.value}
        numbers |= {"best/iterations": float(trainer.best.iteration)}
    return numbers


class PicturesHook(HookBase):
    """Hands example predictions beside the truth to the loggers, after every evaluation.

    The images are the same each time. It comes after the evaluation, and reads the trainer's
    `last_evaluation`.
    """

    def __init__(self, loggers: Sequence[RunLogger], task: Task):
        self.loggers, self.task = loggers, task
        self.seen = 0  # iterations of the evaluation taken in last

    def after_step(self) -> None:
        """Draws an evaluation, if this iteration had one."""
        last = self.trainer.last_evaluation
        if last is None or last.iterations == self.seen:
            return
        self.seen = last.iterations
        if last.found is None or not any(one.is_open for one in self.loggers):
            return
        try:
            pictures = watched_pictures(last.found, self.task.presentation)
        except Exception as error:  # an evaluator of the user's own may leave anything
            logger.warning("example predictions cannot be drawn (%r); the training goes on", error)
            return
        for one in self.loggers:
            one.write_pictures(pictures, self.trainer.storage.iter)

    def after_train(self) -> None:
        """Draws the last evaluation, which comes after the last step."""
        self.after_step()


def watched_pictures(evaluation: Evaluation, shown: Presentation) -> dict[str, np.ndarray]:
    """Draws truth beside detections of a few images spread over the set, (H, W, 3) RGB.

    Images with objects come first; detections are those above the threshold of the best F1.
    """
    images = [image for image in evaluation.images if image.truth and image.found and image.picture]
    images = [image for image in images if len(image.true_classes)] or images
    drawn = [
        draw_pair(images[i], evaluation.names, evaluation.threshold, shown)
        for i in np.linspace(0, len(images) - 1, min(SHOWN_PICTURES, len(images))).astype(int)
    ]
    readable = (picture for picture in drawn if picture is not None)
    return {f"predictions/{n}": x[:, :, ::-1] for n, x in enumerate(readable, start=1)}
