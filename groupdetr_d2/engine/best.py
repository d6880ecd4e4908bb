"""The best checkpoint so far, and the end of a training that gets no better."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint import CheckpointWriteError

logger = logging.getLogger(__name__)
METRIC = "bbox/AP"


class NoImprovement(BaseException):
    """SOLVER.PATIENCE evaluations have passed without a better AP: an end, not an error."""


class Best:
    """What is remembered between evaluations; saved with every checkpoint.

    Attributes:
        value: the highest AP so far, -1 before the first.
        iteration: iterations done then.
        waited: evaluations since.
    """

    def __init__(self):
        self.value, self.iteration, self.waited = -1.0, 0, 0

    def is_new(self, value: float, iteration: int) -> bool:
        """Takes the result of an evaluation; whether it is the best one."""
        if value > self.value:
            self.value, self.iteration, self.waited = value, iteration, 0
            return True
        self.waited += 1
        return False

    def state_dict(self) -> dict:
        """Plain values."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict) -> None:
        """The counterpart of :meth:`state_dict`."""
        vars(self).update(state_dict)


class BestHook(HookBase):
    """Saves `model_best` whenever the AP on the first test set is the highest so far.

    Comes after the evaluation, of which the first process alone has the results.

    Args:
        patience: evaluations without a better one after which the training ends; 0: never.
    """

    def __init__(self, best: Best, checkpointer, patience: int):
        self.best, self.checkpointer, self.patience = best, checkpointer, patience
        self.seen: dict | None = None

    def after_step(self):
        """Looks whether there was an evaluation.

        Raises:
            NoImprovement: the patience is over.
        """
        self._look(self.trainer.iter + 1)
        if self.patience and self.best.waited >= self.patience:
            raise NoImprovement(
                f"no better AP in {self.best.waited} evaluations (SOLVER.PATIENCE): the best is "
                f"{self.best.value:.2f} after {self.best.iteration} iterations"
            )

    def after_train(self):
        """The last evaluation comes after the last step."""
        self._look(self.trainer.iter)

    def _look(self, iteration: int):
        results = getattr(self.trainer, "_last_eval_results", None)
        if results is None or results is self.seen:
            return
        self.seen = results
        value = next((x for x in comm.all_gather(ap_of(results)) if x is not None), None)
        if value is not None and self.best.is_new(value, iteration):
            logger.info("%s %.2f is the best so far: model_best.pth", METRIC, value)
            try:
                self.checkpointer.save("model_best", tag=False, iteration=iteration - 1)
            except CheckpointWriteError as error:
                logger.error("%s. The training goes on", error)


def ap_of(results: dict) -> float | None:
    """Box AP on the first test set; None if there are no results."""
    first = results if "bbox" in results else next(iter(results.values()), {})
    return first.get("bbox", {}).get("AP")
