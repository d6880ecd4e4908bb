"""What train_net.py does in every process."""

import logging

from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm

from ..checkpoint import GroupCheckpointer
from ..checkpoint.run_info import RunInfo
from ..data.checks import check_annotations
from ..inference.augmented import build_evaluated_model
from .report import evaluate_results_file, next_commands, write_report
from .setup import CUSTOM_FLAGS, check_data, setup_config
from .trainer import Trainer

logger = logging.getLogger(__name__)


def build_parser():
    """Detectron2's arguments and those of one's own data."""
    parser = default_argument_parser()
    for flag in CUSTOM_FLAGS:
        what = "COCO-format annotations" if flag.endswith("json") else "folder of the images"
        help_text = f"{what} of your own {flag.split('_')[0]} set"
        parser.add_argument(
            f"--{flag.replace('_', '-')}", default="", metavar="PATH", help=help_text
        )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let MODEL.WEIGHTS run code when it is read: pickles of more than arrays need it",
    )
    return parser


def main(args):
    """Evaluates with --eval-only, else trains; returns the evaluation's results."""
    cfg = setup_config(args)
    default_setup(cfg, args)
    names = cfg.DATASETS.TEST if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    check_data(cfg, names)
    for name in cfg.DATASETS.TEST:
        check_annotations(name, DatasetCatalog.get(name))
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = GroupCheckpointer(model, save_dir=cfg.OUTPUT_DIR, run=RunInfo(cfg))
        checkpointer.trust = args.trust_checkpoint
        is_resumed = args.resume and checkpointer.has_checkpoint()
        path = checkpointer.get_checkpoint_file() if is_resumed else cfg.MODEL.WEIGHTS
        checkpointer.load(path, checkpointables=[])  # to be used: the running mean, if there is one
        results = Trainer.test(cfg, build_evaluated_model(cfg, model))
        if comm.is_main_process() and cfg.DATASETS.TEST:
            write_report(cfg, evaluate_results_file(cfg), results, next_commands(cfg))
            logger.info("%s/report.html shows what was found", cfg.OUTPUT_DIR)
        return results
    trainer = Trainer(cfg)
    trainer.checkpointer.trust = args.trust_checkpoint
    if args.resume and not trainer.checkpointer.has_checkpoint():
        logger.warning("%s has no checkpoint to resume: this is a new run", cfg.OUTPUT_DIR)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()
