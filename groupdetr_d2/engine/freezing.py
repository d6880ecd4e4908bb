"""Parameters that a training does not change."""

import logging
from collections.abc import Sequence

from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from ..name_patterns import matching_names

logger = logging.getLogger(__name__)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes the parameters whose names match one of the patterns (MODEL.FREEZE).

    Batch norms among them become constants: their statistics would move otherwise. Dropout stays.

    Raises:
        UserError: a pattern matches no parameter; what their names begin with is given.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        names = matching_names(parameters, pattern, "MODEL.FREEZE")
        for name in names:
            parameters[name].requires_grad_(False)
        logger.info("MODEL.FREEZE %s: %d tensors stay as they are", pattern, len(names))
    for parent in list(model.modules()) if patterns else ():
        for name, child in list(parent.named_children()):
            own = list(child.parameters())
            if own and not any(p.requires_grad for p in own):
                setattr(parent, name, FrozenBatchNorm2d.convert_frozen_batchnorm(child))
