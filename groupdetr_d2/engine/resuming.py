"""Resuming with other keys, data or classes: some are applied, some refused, all are said."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from ..checkpoint import CheckpointError
from ..checkpoint.run_info import RunInfo
from ..checkpoint.stripping import describe_stripping

logger = logging.getLogger(__name__)
# keys that name files and machines, whose change means nothing
PASSED_OVER = (
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"),
    *("DATASETS.CUSTOM", "DATASETS.TRAIN", "DATASETS.TEST", "SOLVER.SHARDING"),
)
KEPT = ("SEED",)  # of the run that is resumed


def check_resumed(cfg: CfgNode, run: RunInfo) -> None:
    """Says what differs from the run that is resumed.

    Raises:
        CheckpointError: the classes are others, or in another order.
    """
    earlier = run.resumed
    if earlier is None:
        return
    if earlier.get("classes", run.classes) != run.classes:
        raise CheckpointError(
            f"the run has the classes {earlier['classes'][:20]}, the data now "
            f"{run.classes[:20]}: the optimizer's state belongs to the former. Start a new run "
            "from the checkpoint with MODEL.WEIGHTS"
        )
    known = list(earlier.get("data", {}).values())  # names hold paths, which may change
    if known and run.data and known != list(run.data.values()):
        logger.warning(
            "the data of %s are not those that this run has begun with: images, their order and "
            "epochs are no longer those of the uninterrupted run",
            ", ".join(run.data),
        )
    for key, old, new in changed_keys(yaml.safe_load(earlier["config"]), cfg):
        if key in KEPT:
            logger.warning("%s stays %s, as the run has begun, and is not %s", key, old, new)
        else:
            logger.warning("resumed with another %s: %s instead of %s, from now on", key, new, old)


def check_whole(run: RunInfo) -> None:
    """Checks that the checkpoint which is resumed from has what a training goes on with.

    Raises:
        CheckpointError: it is a stripped one.
    """
    note = describe_stripping(run.resumed)
    if note:
        raise CheckpointError(f"the last checkpoint of this folder is {note}")


def changed_keys(old: dict, new: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields the keys that two configurations have with different values, and both values."""
    for key, value in new.items():
        name = prefix + key
        if key not in old or name.startswith(PASSED_OVER):
            continue
        if isinstance(value, CfgNode):
            yield from changed_keys(old[key] or {}, value, f"{name}.")
        elif plain(old[key]) != plain(value):
            yield name, old[key], value


def plain(value: Any) -> Any:
    """A value without the difference between lists and tuples."""
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value


class Rates:
    """The learning rates and weight decays that a configuration asks for.

    A checkpoint brings those of its own run with it; a run that is resumed with others takes them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        groups = optimizer.param_groups
        self.rates = [group.get("initial_lr", group["lr"]) for group in groups]
        self.decays = [group.get("weight_decay") for group in groups]

    def apply(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Sets them, after the optimizer's and the scheduler's state has been restored."""
        old = getattr(scheduler, "base_lrs", None)
        if old is None or len(old) != len(self.rates):
            return
        groups = zip(optimizer.param_groups, old, self.rates, self.decays, strict=True)
        for group, before, rate, decay in groups:
            if decay is not None:
                group["weight_decay"] = decay
            if before != rate:
                group["lr"] *= rate / before if before else 1.0
                group["initial_lr"] = rate
        scheduler.base_lrs = list(self.rates)
