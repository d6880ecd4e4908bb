"""Epochs and batch sizes turned into iterations and learning rates, which are logged."""

import logging

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

logger = logging.getLogger(__name__)


def settle_schedule(cfg: CfgNode) -> None:
    """Applies SOLVER.EPOCHS and SOLVER.REFERENCE_BATCH to the keys that Detectron2 reads.

    It can be applied again, as when a finished run's configuration is used anew.
    """
    if cfg.SOLVER.EPOCHS and cfg.DATASETS.TRAIN:
        size = len(
            get_detection_dataset_dicts(
                cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
            )
        )
        set_epochs(cfg, size)
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
