"""The one way from a checkpoint's file to a model; the file is read once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..config import build_config, check_choices, check_ranges, override
from ..config.upgrade import upgrade
from ..modeling.meta_arch import SetPredictor
from .checkpointer import GroupCheckpointer, read_content
from .files import CheckpointError
from .hub_weights import local_file
from .structure import check_sizes, config_text, used_tensors
from .thresholds import find_threshold


@dataclass(frozen=True)
class Restored:
    """A trained model, ready for inference, with what its checkpoint says about it."""

    cfg: CfgNode
    model: SetPredictor  # in evaluation mode
    classes: list[str]  # names, in the order of the model's classes
    threshold: float | None  # the score with the best F1; None if there was no evaluation


def restore(
    weights: str | Path,
    opts: Sequence = (),
    *,
    settle: Callable[[CfgNode], None] | None = None,
) -> Restored:
    """Builds the model of a checkpoint from the configuration that it carries.

    Args:
        weights: a checkpoint of a groupdetr_d2 training, or a model of the Hugging Face hub,
            hf://owner/name.
        opts: overrides of the configuration, ``["KEY", value, ...]``.
        settle: called with the configuration before the model is built, to settle what this
            machine and its data sets decide.

    Raises:
        CheckpointError: the file does not exist, cannot be read or is no such checkpoint.
        ConfigError: an override is wrong.
    """
    weights = local_file(weights)
    content = read_checkpoint(weights)
    cfg = config_of(content, weights)
    override(cfg, opts)
    if settle is not None:
        settle(cfg)
    try:
        model = build_model(cfg).eval()
    except Exception as error:  # a configuration that was tampered with can raise anything
        if isinstance(error, RuntimeError) and "CUDA" in str(error):
            raise  # of the machine, not of the file
        raise CheckpointError(
            f"the configuration in {weights} cannot be built: {' '.join(str(error).split())[:500]}"
        ) from error
    threshold = find_threshold(weights, content)
    GroupCheckpointer(model).load_to_use(content, str(weights))
    return Restored(cfg, model, content["run"]["classes"], threshold)


def read_checkpoint(weights: str | Path) -> dict:
    """Reads a checkpoint that carries its configuration.

    Raises:
        CheckpointError: the file does not exist or carries none.
    """
    if not Path(weights).is_file():
        raise CheckpointError(f"the checkpoint {weights} does not exist")
    content = read_content(str(weights))
    if "config" not in content.get("run", {}):
        raise CheckpointError(
            f"{weights} does not say which configuration it belongs to: it is no checkpoint of a "
            "groupdetr_d2 training"
        )
    return content


def config_of(content: dict, weights: str | Path) -> CfgNode:
    """The configuration that a checkpoint was trained with, for the device of this machine.

    Raises:
        CheckpointError: it is none, or asks for more than the checkpoint's tensors can fill.
    """
    cfg = build_config()
    nested = config_text(content, str(weights))
    try:
        nested = upgrade(nested)
        nested["MODEL"]["DEVICE"] = cfg.MODEL.DEVICE
        cfg.merge_from_other_cfg(CfgNode(nested))
        check_choices(cfg)
        check_ranges(cfg)
    except Exception as error:  # a value of a wrong type can raise anything
        raise CheckpointError(f"the configuration in {weights}: {error}") from error
    check_sizes(nested, used_tensors(content), str(weights))
    names = content["run"]["classes"]
    if len(names) != cfg.MODEL.DETR.NUM_CLASSES:
        raise CheckpointError(
            f"{weights} has {len(names)} class names, and MODEL.DETR.NUM_CLASSES is "
            f"{cfg.MODEL.DETR.NUM_CLASSES} in its configuration"
        )
    return cfg
