"""The work of train_net.py in every process."""

import logging
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..checkpoint import CheckpointError, GroupCheckpointer
from ..checkpoint.run_info import RunInfo
from ..checkpoint.stripping import stripped_note
from ..checkpoint.structure import check_filled
from ..evaluation.report_page import RunRecord
from ..inference.augmented import build_evaluated_model
from .report import label_statistics, next_commands, read_evaluation, results_file, write_report
from .run_facts import facts_of
from .setup import check_test_sets, log_details, setup_config, write_config
from .trainer import Trainer
from .validation_loss import loss_meter_of

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
    """Sets up random numbers as Detectron2's `default_setup` does, and writes to the log file.

    `config.yaml` is written where there is none: a run in the folder may refuse to be resumed, or
    is only evaluated. The trainer writes it when the training begins.
    """
    log_details(cfg, args)
    if not Path(cfg.OUTPUT_DIR, "config.yaml").is_file():
        write_config(cfg)
    seed_all_rng(cfg.SEED + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


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
    note = stripped_note(path)
    if note:
        logger.info("%s is %s", path, note)
    results_file(cfg).unlink(missing_ok=True)  # of an earlier evaluation
    evaluated = build_evaluated_model(cfg, model)
    meter = loss_meter_of(cfg, evaluated)
    results = Trainer.test(cfg, meter or evaluated)
    losses = meter.losses() if meter else {}
    if comm.is_main_process() and cfg.DATASETS.TEST:
        record = RunRecord(
            facts=facts_of(cfg, {"evaluated weights": str(path)}),
            losses=losses,
            labels=label_statistics(cfg, cfg.DATASETS.TEST),
            commands=next_commands(cfg),
            config=cfg.dump(),
        )
        write_report(cfg, read_evaluation(cfg), results, record)
        logger.info("%s/report.html shows what was found", cfg.OUTPUT_DIR)
    return results
