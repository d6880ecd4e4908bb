"""The mirror image of queries: what they start from on an image that is flipped left to right."""

from dataclasses import replace

from torch import nn

from ..errors import UserError
from ..groups import QueryGroups
from ..layers.box_ops import mirrored
from ..structures import Memory, Queries
from .two_stage import TwoStageQueries


def mirrored_queries(
    source: nn.Module, queries: Queries, memory: Memory, groups: QueryGroups
) -> Queries:
    """Mirrors the queries of an image: references, and what was made of the image or its boxes.

    Learned content and learned positions stay: they are the names by which queries know one
    another.

    Args:
        source: the module that made the queries.
        memory: that of the mirrored image, in the size that the queries were made in.

    Raises:
        UserError: the references are neither points nor boxes in the image.
    """
    if isinstance(source, TwoStageQueries):
        return source.mirrored(queries, memory, groups)
    if queries.reference.shape[-1] not in (2, 4):
        raise UserError(
            f"the queries of {type(source).__name__} have no points or boxes that can be mirrored: "
            "set TEST.AUG.FUSION boxes, or TEST.AUG.FLIP False"
        )
    return replace(queries, reference=mirrored(queries.reference))
