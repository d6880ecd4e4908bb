"""The best checkpoint so far, and the end of a training that does not improve."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint import CheckpointWriteError, GroupCheckpointer
from ..tasks.task import Task

logger = logging.getLogger(__name__)


class NoImprovement(BaseException):
    """SOLVER.PATIENCE evaluations have passed without a better result: an end, not an error."""


class Best:
    """The best result so far; saved with every checkpoint.

    Attributes:
        value: the best value of the task's metric so far, -1 before the first.
        iteration: number of iterations done by then.
        waited: number of evaluations since.
    """

    def __init__(self) -> None:
        self.value, self.iteration, self.waited = -1.0, 0, 0

    def is_new(self, value: float, iteration: int) -> bool:
        """Takes in the result of an evaluation; returns whether it is the best one."""
        if value > self.value:
            self.value, self.iteration, self.waited = value, iteration, 0
            return True
        self.waited += 1
        return False

    def state_dict(self) -> dict:
        """Returns the state for the checkpoint: plain numbers."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores what :meth:`state_dict` returned."""
        vars(self).update(state_dict)


class BestHook(HookBase):
    """Saves `model_best` whenever the metric on the first test set is the best so far.

    It comes after the evaluation, and reads the trainer's `last_evaluation`.

    Args:
        patience: evaluations without a better result after which the training ends; 0: never.
    """

    def __init__(self, best: Best, checkpointer: GroupCheckpointer, task: Task, patience: int):
        self.best, self.checkpointer, self.task, self.patience = best, checkpointer, task, patience
        self.seen = 0  # iterations of the evaluation taken in last

    def after_step(self) -> None:
        """Takes in an evaluation, if this iteration had one.

        Raises:
            NoImprovement: the patience is over.
        """
        self._take_in_evaluation()
        if self.patience and self.best.waited >= self.patience:
            raise NoImprovement(
                f"no better {self.task.metric} in {self.best.waited} evaluations "
                f"(SOLVER.PATIENCE): the best is {self.best.value:.2f} after "
                f"{self.best.iteration} iterations"
            )

    def after_train(self) -> None:
        """Takes in the last evaluation, which comes after the last step."""
        self._take_in_evaluation()

    def _take_in_evaluation(self) -> None:
        last = self.trainer.last_evaluation
        if last is None or last.iterations == self.seen:
            return
        self.seen = last.iterations
        # the first process alone has results
        values = comm.all_gather(self.task.score_of(last.results))
        value = next((x for x in values if x is not None), None)
        if value is None and last.results:
            logger.warning(
                "the evaluation gives no %s: there is no model_best.pth, and SOLVER.PATIENCE waits "
                "for nothing",
                self.task.metric,
            )
        if value is None or not self.best.is_new(value, last.iterations):
            return
        logger.info("%s %.2f is the best so far: model_best.pth", self.task.metric, value)
        try:
            self.checkpointer.save("model_best", tag=False, iteration=last.iterations - 1)
        except CheckpointWriteError as error:
            logger.error("%s. The training goes on", error)
