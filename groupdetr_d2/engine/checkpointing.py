"""When a training writes its state."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.common.checkpoint import PeriodicCheckpointer

from ..checkpoint import CheckpointWriteError, GroupCheckpointer
from .interruption import Interrupted

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Saves periodically, at the end, and before a signal ends the training.

    It stands ahead of evaluation, in every process. A periodic checkpoint that cannot be written is
    an error in the log, and the training goes on; the last one must be written.

    Args:
        period: iterations between checkpoints.
        keep: of the numbered ones, how many; 0 for all.
    """

    def __init__(self, checkpointer: GroupCheckpointer, *, period: int, keep: int):
        self.checkpointer, self.period, self.keep = checkpointer, period, keep

    def before_train(self):
        """The length of the training is known now."""
        self.periodic = PeriodicCheckpointer(
            self.checkpointer,
            self.period,
            max_iter=self.trainer.max_iter,
            max_to_keep=self.keep or None,
        )

    def after_step(self):
        """
        Raises:
            Interrupted: a process has been told to stop.
            CheckpointWriteError: the last checkpoint could not be written.
        """
        iteration = self.trainer.iter
        if comm.is_main_process():
            self._save_if_due(iteration)
        if self.trainer.stop_signal:
            self.save_now(iteration)
            comm.synchronize()  # who is ready first must not end the others
            raise Interrupted(self.trainer.stop_signal)

    def _save_if_due(self, iteration: int):
        try:
            self.periodic.step(iteration)
        except CheckpointWriteError as error:
            if iteration + 1 >= self.trainer.max_iter:
                raise
            logger.error("%s. The training goes on", error)

    def save_now(self, iteration: int):
        """The state after `iteration`, to resume from."""
        if comm.is_main_process():
            self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
