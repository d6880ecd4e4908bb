"""Official DAB-DETR checkpoints (IDEA-Research/DAB-DETR)."""

from .official import COMMON_RULES, Converter

RULES = [
    (r"^refpoint_embed\.weight$", "head.queries.bank.weight"),
    # the same tensors as bbox_embed.*, registered a second time
    (r"^transformer\.decoder\.(bbox_embed)\.", r"\1."),
    (r"^transformer\.encoder\.query_scale\.", "head.encoder.pos_scale."),
    (
        r"^transformer\.decoder\.(ref_point_head|ref_anchor_head|query_scale)\.",
        r"head.decoder.query_position.\1.",
    ),
    *COMMON_RULES,
]
CONVERTER = Converter(RULES)
