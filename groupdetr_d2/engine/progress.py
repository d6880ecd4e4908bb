"""The progress of a training: a bar where a person looks, lines anywhere else."""

import datetime
import logging
import sys
import time
from collections.abc import Sequence

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from tqdm import tqdm

from ..tasks.task import Task
from .memory import peak_memory_mib
from .terminal import FILE_ALONE, prepare_terminal, shows_bar

logger = logging.getLogger(__name__)
SMOOTHED = 20  # iterations whose median is shown
REFRESHED = 0.5  # seconds between two looks of the bar
BAR = "{desc} {n_fmt}/{total_fmt} |{bar:10}| eta {remaining}, {rate_fmt}{postfix}"


class ProgressPrinter(EventWriter):
    """Prints epoch, ETA, the last decoder layer's losses, rates, times and memory.

    Beside a bar, lines go to the log file alone; in a file that the terminal's lines are sent to,
    they stay.

    Args:
        epoch_iters: iterations of one epoch; None if that is not known.
        shown_losses: names of the losses to print beside their sum.
    """

    def __init__(
        self,
        max_iter: int,
        epoch_iters: float | None,
        device: torch.device,
        shown_losses: Sequence[str],
    ):
        self.max_iter, self.epoch_iters, self.device = max_iter, epoch_iters, device
        self.shown = ("total_loss", *shown_losses)
        self.last: tuple[int, float] | None = None

    def write(self) -> None:
        """Prints one line."""
        storage = get_event_storage()
        iteration = storage.iter + 1
        if storage.iter == self.max_iter:
            return
        latest = storage.latest_with_smoothing_hint(SMOOTHED)
        parts = [f"iter {iteration}/{self.max_iter}", f"eta {self._eta(iteration)}"]
        if self.epoch_iters:
            parts.insert(0, epochs_done(iteration, self.max_iter, self.epoch_iters))
        parts += losses_of(storage, self.shown)
        if "lr" in latest:
            parts.append(f"lr {latest['lr'][0]:.3g}")
        for name in ("time", "data_time", "match_time"):
            if name in latest:
                parts.append(f"{name} {latest[name][0]:.4f}")
        parts.append(f"memory {peak_memory_mib(self.device):.0f}M")
        is_beside_bar = shows_bar() and sys.stdout.isatty()
        logger.info("  ".join(parts), extra=FILE_ALONE if is_beside_bar else None)

    def _eta(self, iteration: int) -> str:
        now = time.perf_counter()
        if self.last is None or self.last[0] == iteration:
            self.last = self.last or (iteration, now)
            return "?"
        seconds = (now - self.last[1]) / (iteration - self.last[0])
        return str(datetime.timedelta(seconds=int(seconds * (self.max_iter - iteration))))


class ProgressBar(HookBase):
    """Draws a bar on a terminal: epoch, iteration, time left, losses and the last evaluation.

    It reads the trainer's `last_evaluation`. Where the standard error is no terminal it does
    nothing.

    Args:
        epoch_iters: iterations of one epoch; None if that is not known.
    """

    def __init__(self, task: Task, epoch_iters: float | None):
        self.task, self.epoch_iters = task, epoch_iters
        self.bar: tqdm | None = None
        self.looked = 0.0

    def before_train(self) -> None:
        """Draws the bar at the iteration that the training begins with."""
        if not shows_bar():
            return
        prepare_terminal()
        self.bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            unit="it",
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format=BAR,
            mininterval=REFRESHED,
        )

    def after_step(self) -> None:
        """Moves the bar, and looks at the numbers beside it now and then."""
        if self.bar is None:
            return
        now = time.monotonic()
        iteration = self.trainer.iter + 1
        if now - self.looked >= REFRESHED or iteration == self.trainer.max_iter:
            self.looked = now
            self._describe(self.bar, iteration)
        self.bar.update()

    def _describe(self, bar: tqdm, iteration: int) -> None:
        if self.epoch_iters:
            done = epochs_done(iteration, self.trainer.max_iter, self.epoch_iters)
            bar.set_description_str(done, refresh=False)
        last = self.trainer.last_evaluation
        score = self.task.score_of(last.results) if last else None
        metric = self.task.metric.rpartition("/")[2]
        parts = [] if score is None else [f"{metric} {score:.1f}"]
        losses = losses_of(get_event_storage(), ("total_loss", *self.task.shown_losses))
        parts += [x.removeprefix("total_").removeprefix("loss_") for x in losses]
        bar.set_postfix_str("  ".join(parts), refresh=False)

    def after_train(self) -> None:
        """Leaves the bar where it is."""
        self.close()

    def close(self) -> None:
        """Ends the bar, also where an error has ended the training."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def epochs_done(iteration: int, max_iter: int, epoch_iters: float) -> str:
    """Formats the epochs after so many iterations, and those of the whole training."""
    return f"epoch {iteration / epoch_iters:.2f}/{max_iter / epoch_iters:.4g}"


def losses_of(storage: EventStorage, names: Sequence[str]) -> list[str]:
    """Formats the latest losses of these names, smoothed."""
    latest = storage.latest_with_smoothing_hint(SMOOTHED)
    return [f"{name} {latest[name][0]:.4g}" for name in names if name in latest]
