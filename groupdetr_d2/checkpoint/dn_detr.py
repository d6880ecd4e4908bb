"""Official DN-DETR checkpoints (IDEA-Research/DN-DETR, models/DN_DAB_DETR)."""

from torch import Tensor

from . import dab_detr
from .official import convert_dense, rename

RULES = [(r"^label_enc\.", "head.denoising.label_embedding."), *dab_detr.RULES]


def convert_key(key: str) -> str | None:
    """Our name of an official parameter; None if it has none."""
    return rename(key, RULES)


def convert_state_dict(
    official: dict[str, Tensor], *, num_queries: int = 300, num_classes: int = 80
) -> tuple[dict[str, Tensor], list[str]]:
    """See :func:`groupdetr_d2.checkpoint.official.convert_dense`."""
    return convert_dense(official, RULES, num_queries=num_queries, num_classes=num_classes)
