"""The description of a training that is not begun: train_net.py with --dry-run."""

import argparse
import sys
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

from ..checkpoint.files import check_exists
from ..config import build_config
from ..engine.freezing import freeze
from ..engine.rates import rate_table
from ..engine.resuming import changed_keys
from ..engine.schedule import describe_schedule
from ..engine.setup import config_of_arguments, scheduled, settle_config
from ..engine.training_data import load_training_set
from ..errors import UserError
from ..modeling.meta_arch import task_of
from .model_info import describe
from .step_memory import estimate_step, largest_size


def dry_run(args: argparse.Namespace) -> int:
    """Prints what a training would be; it makes no folder of a run and reads no weights.

    Data that are not there are named and leave the schedule as the yaml has it.

    Args:
        args: those of `train`.
    """
    cfg = config_of_arguments(args)
    processes = args.num_gpus * args.num_machines
    for title, text in sections_of(cfg, processes):
        sys.stdout.write(f"{title}\n{text}\n\n")
    return 0


def sections_of(cfg: CfgNode, processes: int) -> Iterator[tuple[str, str]]:
    """Yields the parts of the description: a title and its text."""
    yield "configuration, where it is not the default's:", differences(cfg)
    yield "weights:", describe_weights(cfg)
    lines, number = describe_data(cfg)
    yield "data:", "\n".join(lines)
    cfg = scheduled(cfg, number) if number else cfg
    epoch = number / cfg.SOLVER.IMS_PER_BATCH if number else None
    yield "schedule:", describe_schedule(cfg, 0, epoch, processes)
    model = unfilled_model(cfg)
    yield "model:", tabulate(list(describe(cfg)), tablefmt="plain", disable_numparse=True)
    yield "learning rates, after the warm-up:", rate_table(cfg, model)
    yield "memory:", describe_memory(cfg, processes)


def differences(cfg: CfgNode) -> str:
    """Lists the keys whose value is another than the plugin's default."""
    rows = [(key, str(new)) for key, _, new in changed_keys(build_config(), cfg)]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def describe_weights(cfg: CfgNode) -> str:
    """Says what the training begins with; a file is looked for and not read."""
    try:
        check_exists(cfg.MODEL.WEIGHTS)
    except UserError as error:
        return f"a training would end here: {error}"
    return cfg.MODEL.WEIGHTS or "none: random numbers"


def describe_data(cfg: CfgNode) -> tuple[list[str], int | None]:
    """Counts the images of training and test sets.

    Returns:
        a line a set, or the reason why it cannot be read, and the number of training images; None
        if it is not known.
    """
    lines: list[str] = []
    number = None
    try:
        settle_config(cfg)
        number = len(load_training_set(cfg))
        lines.append(f"{number} training images of {', '.join(cfg.DATASETS.TRAIN)}")
        data = task_of(cfg).data
        for name in cfg.DATASETS.TEST:
            images = data.images_of(name, is_evaluated=True)
            lines.append(f"{len(images)} images of {name} to evaluate on")
    except (UserError, OSError) as error:
        lines.append(f"a training would end here: {error}")
    return lines, number


def describe_memory(cfg: CfgNode, processes: int) -> str:
    """Estimates the memory of a step with the largest images, for the kernels of a GPU."""
    try:
        step = estimate_step(cfg, num_gpus=processes, sharded=bool(cfg.SOLVER.SHARDING))
    except UserError as error:
        return f"a training would end here: {error}"
    height, width = largest_size(cfg)
    return f"{step}; images of {height} x {width} (`groupdetr-d2 plan` shows other ways to train)"


def unfilled_model(cfg: CfgNode) -> nn.Module:
    """Builds the model without memory for its parameters."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    freeze(model, cfg.MODEL.FREEZE)
    return model
