"""Official DAB-DETR checkpoints (IDEA-Research/DAB-DETR)."""

from torch import Tensor

from .official import COMMON_RULES, convert_dense, rename

RULES = [
    (r"^refpoint_embed\.weight$", "head.queries.bank.weight"),
    # the same tensors as bbox_embed.*, registered a second time
    (r"^transformer\.decoder\.bbox_embed\.", "bbox_embed."),
    (r"^transformer\.encoder\.query_scale\.", "head.encoder.pos_scale."),
    (
        r"^transformer\.decoder\.(ref_point_head|ref_anchor_head|query_scale)\.",
        r"head.decoder.query_position.\1.",
    ),
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
