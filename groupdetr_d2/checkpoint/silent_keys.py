"""Keys that change what a model computes, and that no tensor of a checkpoint shows."""

import logging
from typing import Any

import yaml

logger = logging.getLogger(__name__)
KEYS = (
    *("MODEL.DETR.VARIANT", "MODEL.DETR.NHEADS", "MODEL.DETR.POSITION_TEMPERATURE"),
    *("MODEL.DETR.POSITION_OFFSET", "MODEL.DETR.SAM.SMCA", "MODEL.DETR.SIZE_DIVISIBILITY"),
    *("MODEL.BACKBONE.NAME", "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.RESNETS.RES5_DILATION"),
    *("MODEL.VIT.NUM_HEADS", "MODEL.VIT.WINDOW_SIZE", "MODEL.VIT.GLOBAL_BLOCKS"),
    *("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former is ten times as fast


def warn_of_silent_keys(theirs: Any, ours: Any) -> None:
    """Warns of keys in which a checkpoint's configuration differs from that of the model.

    Args:
        theirs: the configuration that the checkpoint carries, as text; of anything else nothing is
            said.
        ours: the model's.
    """
    if not isinstance(theirs, str) or not isinstance(ours, str):
        return
    try:
        old, new = yaml.load(theirs, LOADER), yaml.load(ours, LOADER)  # a safe one
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    for key in KEYS:
        before, now = _value(old, key), _value(new, key)
        if None not in (before, now) and before != now:
            logger.warning(
                "%s is %s, and was %s where the checkpoint comes from: no tensor shows it, and "
                "the model detects worse until it has learned anew. To keep it: %s %s",
                key,
                now,
                before,
                key,
                f'"{before}"' if isinstance(before, list) else before,
            )


def _value(content: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(content, dict):
            return None
        content = content.get(part)
    return content
