"""Official SAM-DETR and SAM-DETR++ checkpoints (ZhangGongjie/SAM-DETR)."""

from torch import Tensor

from .official import COMMON_RULES, convert_dense, rename

RULES = [
    (r"^query_embed\.weight$", "head.queries.bank.weight"),
    (r"^input_proj\.(\d+)\.(\d)\.", r"head.neck.projections.\1.\2."),
    # the same tensors as bbox_embed.*, registered a second time
    (r"^transformer\.decoder\.bbox_embed\.", "bbox_embed."),
    (r"^bbox_embed\.(\d+)\.", r"head.predictor.layer_box_heads.\1."),
    (r"^class_embed\.(\d+)\.", r"head.predictor.class_heads.\1."),
    (r"\.ca_([qk])pos_sine_proj\.", r".cross_attn.\1_sine."),
    (r"\.point1\.0\.", ".cross_attn.aligner.reduce."),
    (r"\.point2\.", ".cross_attn.aligner.points."),
    (r"\.attn1\.", ".cross_attn.content_gate."),
    (r"\.attn2\.", ".cross_attn.position_gate."),
    (r"^transformer\.level_embed$", "head.encoder.level_embedding"),
    *COMMON_RULES,
]


def convert_key(key: str) -> str | None:
    """Our name of an official parameter; None if it has none."""
    return rename(key, RULES)


def convert_state_dict(
    official: dict[str, Tensor], *, num_queries: int = 300, num_classes: int = 80
) -> tuple[dict[str, Tensor], list[str]]:
    """See :func:`groupdetr_d2.checkpoint.official.convert_dense`.

    The 12-epoch checkpoints have a GroupNorm after the projection, the 50-epoch ones none; a
    convolution alone has one index less here.
    """
    if "input_proj.0.1.weight" not in official:
        official = {
            key.replace("input_proj.0.0.", "input_proj."): value for key, value in official.items()
        }
    return convert_dense(official, RULES, num_queries=num_queries, num_classes=num_classes)
