"""Epochs and batch sizes turned into iterations and learning rates, which are logged."""

import logging

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import UserError

logger = logging.getLogger(__name__)


def settle_schedule(cfg: CfgNode, num_images: int | None) -> None:
    """Applies SOLVER.EPOCHS and SOLVER.REFERENCE_BATCH to the keys that Detectron2 reads.

    It can be applied again, as when a finished run's configuration is used anew.

    Args:
        num_images: of an epoch; None if the loader does not say.

    Raises:
        UserError: SOLVER.EPOCHS is given, and the length of an epoch is not known.
    """
    if cfg.SOLVER.EPOCHS:
        if num_images is None:
            raise UserError(
                "SOLVER.EPOCHS needs to know the number of training images, which a "
                "build_train_loader of your own does not say: give SOLVER.EPOCHS 0 and MAX_ITER"
            )
        set_epochs(cfg, num_images)
    reference, batch = cfg.SOLVER.REFERENCE_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference and reference != batch:
        old = cfg.SOLVER.BASE_LR
        cfg.SOLVER.BASE_LR = old * batch / reference
        cfg.SOLVER.REFERENCE_BATCH = batch
        logger.info(
            "SOLVER.BASE_LR %g is meant for batches of %d; for batches of %d it becomes %g",
            old,
            reference,
            batch,
            cfg.SOLVER.BASE_LR,
        )


def set_epochs(cfg: CfgNode, num_images: int) -> None:
    """Sets MAX_ITER, STEPS and periods for SOLVER.EPOCHS epochs of so many images."""
    solver = cfg.SOLVER
    epoch = num_images / solver.IMS_PER_BATCH
    iterations = max(1, round(solver.EPOCHS * epoch))
    steps = [round(step * iterations / solver.MAX_ITER) for step in solver.STEPS]
    solver.STEPS = type(solver.STEPS)(steps)
    solver.MAX_ITER = iterations
    solver.CHECKPOINT_PERIOD = max(1, round(epoch))
    if cfg.TEST.EVAL_PERIOD:
        cfg.TEST.EVAL_PERIOD = solver.CHECKPOINT_PERIOD
    logger.info(
        "SOLVER.EPOCHS %d of %d images in batches of %d: MAX_ITER %d, STEPS %s, evaluation and "
        "checkpoint every %d iterations",
        solver.EPOCHS,
        num_images,
        solver.IMS_PER_BATCH,
        solver.MAX_ITER,
        list(solver.STEPS),
        solver.CHECKPOINT_PERIOD,
    )


def describe_schedule(
    cfg: CfgNode, start_iter: int, epoch_iters: float | None, processes: int = 0
) -> str:
    """Describes length, batch, rates and periods of a training in a sentence.

    Args:
        epoch_iters: iterations of one epoch; None if that is not known.
        processes: number of processes; those that there are if not given.
    """
    solver, period = cfg.SOLVER, cfg.TEST.EVAL_PERIOD
    epochs = f" ({solver.MAX_ITER / epoch_iters:.4g} epochs)" if epoch_iters else ""
    begin = f"from iteration {start_iter} to" if start_iter else "for"
    is_stepped = solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR"
    drops = [str(step) for step in solver.STEPS if step < solver.MAX_ITER and is_stepped]
    evaluation = f"every {period} iterations and at the end" if period else "at the end"
    processes = processes or comm.get_world_size()
    return (
        f"training {begin} {solver.MAX_ITER} iterations{epochs} of {solver.IMS_PER_BATCH} inputs "
        f"on {cfg.MODEL.DEVICE} in {processes} process{'es' * (processes > 1)}; "
        f"learning rate {solver.BASE_LR:g}{', dropping at ' * bool(drops)}{', '.join(drops)}; "
        f"evaluation {evaluation if cfg.DATASETS.TEST else 'never'}, "
        f"checkpoints every {solver.CHECKPOINT_PERIOD}"
    )
