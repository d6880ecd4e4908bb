"""Official Conditional DETR checkpoints (Atten4Vis/ConditionalDETR, main and GroupDETR branches).

The group branch differs in the number of rows of `query_embed.weight` alone.
"""

from torch import Tensor

from .official import COMMON_RULES, convert_dense, rename

RULES = [
    (r"^query_embed\.weight$", "head.queries.bank.weight"),
    (r"^transformer\.decoder\.ref_point_head\.", "head.queries.ref_point_head."),
    (r"^transformer\.decoder\.query_scale\.", "head.decoder.query_position.query_scale."),
    *COMMON_RULES,
]


def convert_key(key: str) -> str | None:
    """Our name of an official parameter; None if it has none."""
    return rename(key, RULES)


def convert_state_dict(
    official: dict[str, Tensor], *, num_queries: int = 300, num_classes: int = 80
) -> tuple[dict[str, Tensor], list[str]]:
    """See :func:`groupdetr_d2.checkpoint.official.convert_dense`."""
    return convert_dense(official, RULES, num_queries=num_queries, num_classes=num_classes)
