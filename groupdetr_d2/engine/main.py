"""The work of train_net.py in every process."""

import logging
from argparse import Namespace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from ..checkpoint import CheckpointError, GroupCheckpointer
from ..checkpoint.run_info import RunInfo
from ..checkpoint.structure import check_filled
from ..inference.augmented import build_evaluated_model
from .report import next_commands, read_evaluation, results_file, write_report
from .setup import check_test_sets, setup_config
from .trainer import Trainer

logger = logging.getLogger(__name__)


def main(args: Namespace) -> dict | None:
    """Evaluates with --eval-only, else trains; returns the evaluation's results."""
    cfg = setup_config(args)
    set_up(cfg, args)
    if args.eval_only:
        check_test_sets(cfg)
        return evaluate(cfg, args)
    trainer = Trainer(cfg)
    trainer.checkpointer.trust = args.trust_checkpoint
    if args.resume and not trainer.checkpointer.has_checkpoint():
        logger.warning("%s has no checkpoint to resume: this is a new run", cfg.OUTPUT_DIR)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def set_up(cfg: CfgNode, args: Namespace) -> None:
    """Sets up log and random numbers as Detectron2 does.

    It would put this configuration in the place of that of the run in the folder, which may refuse
    to be resumed, or is only evaluated; the trainer writes it when the training begins.
    """
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    earlier = path.read_bytes() if path.is_file() else None
    default_setup(cfg, args)
    if earlier is not None and comm.is_main_process():
        path.write_bytes(earlier)


def evaluate(cfg: CfgNode, args: Namespace) -> dict:
    """Evaluates MODEL.WEIGHTS, or with --resume the run's last checkpoint, and writes a report."""
    model = Trainer.build_model(cfg)
    checkpointer = GroupCheckpointer(model, save_dir=cfg.OUTPUT_DIR, run=RunInfo(cfg))
    checkpointer.trust = args.trust_checkpoint
    is_resumed = args.resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if is_resumed else cfg.MODEL.WEIGHTS
    if not path:
        raise CheckpointError("--eval-only needs weights: MODEL.WEIGHTS FILE, or --resume")
    checkpointer.load(path, checkpointables=[])  # to be used: the running mean, if there is one
    check_filled(checkpointer.states, model.state_dict(), path)
    if checkpointer.unmatched:
        raise CheckpointError(
            f"{path} does not know the classes {checkpointer.unmatched[:20]} of the data: they "
            "would be random"
        )
    results_file(cfg).unlink(missing_ok=True)  # of an earlier evaluation
    results = Trainer.test(cfg, build_evaluated_model(cfg, model))
    if comm.is_main_process() and cfg.DATASETS.TEST:
        write_report(cfg, read_evaluation(cfg), results, next_commands(cfg))
        logger.info("%s/report.html shows what was found", cfg.OUTPUT_DIR)
    return results
