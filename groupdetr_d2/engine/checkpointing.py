"""The hook that saves checkpoints of a training."""

import logging
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.common.checkpoint import PeriodicCheckpointer

from ..checkpoint import CheckpointWriteError, GroupCheckpointer
from .interruption import Interrupted

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Saves periodically, at the end, and before a signal ends the training.

    It stands ahead of evaluation, in every process: all of them save, as parameters may be spread
    over them, and the first one writes. A periodic checkpoint that cannot be written is
    an error in the log, and the training goes on; the last one must be written.

    Args:
        period: iterations between checkpoints.
        keep: of the numbered ones, how many; 0 for all.
    """

    def __init__(self, checkpointer: GroupCheckpointer, *, period: int, keep: int):
        self.checkpointer, self.period, self.keep = checkpointer, period, keep
        self.last_tried = -1  # the iteration whose state was saved last, if it could be written

    def before_train(self) -> None:
        """Sets up the periods, as the length of the training is known now."""
        self.periodic = PeriodicCheckpointer(
            self.checkpointer,
            self.period,
            max_iter=self.trainer.max_iter,
            max_to_keep=(comm.is_main_process() and self.keep) or None,
        )
        if comm.is_main_process():
            for file in reversed(self.checkpointer.resumable_files()):
                self._remember(file)

    def _remember(self, file: str) -> None:
        """Counts a numbered checkpoint, also of an earlier attempt, among those that are kept."""
        known = self.periodic.recent_checkpoints
        if Path(file).stem.removeprefix("model_").isdigit() and file not in known:
            known.append(file)

    def after_step(self) -> None:
        """Saves if it is time, and ends the training if a signal asks for it.

        Raises:
            Interrupted: a process has been told to stop.
            CheckpointWriteError: the last checkpoint could not be written.
        """
        iteration = self.trainer.iter
        self._save_if_due(iteration)
        if self.trainer.stop_signal:
            try:
                self.save_now(iteration)
            finally:
                comm.synchronize()  # a process that is ready first must not end the others
            raise Interrupted(self.trainer.stop_signal)

    def _save_if_due(self, iteration: int) -> None:
        is_last = iteration + 1 >= self.trainer.max_iter
        if is_last or not (iteration + 1) % self.period:
            self.last_tried = iteration
        try:
            self.periodic.step(iteration)
        except CheckpointWriteError as error:
            if is_last:
                raise
            logger.error("%s. The training goes on", error)

    def save_now(self, iteration: int) -> None:
        """Saves the state after `iteration`, to resume from."""
        self.last_tried = iteration
        # the other processes end sooner, and the launcher with them
        with self.trainer.signals.held():
            self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        if comm.is_main_process():
            self._remember(self.checkpointer.get_checkpoint_file())

    def save_ahead(self, iteration: int) -> None:
        """Saves, unless it has been done, what one process could not save alone afterwards."""
        if self.last_tried == iteration:
            return
        try:
            self.save_now(iteration)
        except CheckpointWriteError as error:
            logger.error("%s. The training goes on", error)
