"""Official DAB-Deformable-DETR and DN-DAB-Deformable-DETR checkpoints (IDEA-Research)."""

from . import deformable_detr
from .deformable_detr import stack, untie
from .official import Converter

RULES = [
    (r"^refpoint_embed\.weight$", "head.queries.bank.weight"),
    (r"^tgt_embed\.weight$", "head.queries.content_bank.weight"),
    (r"^label_enc\.", "head.denoising.label_embedding."),
    (
        r"^transformer\.decoder\.(ref_point_head|query_scale)\.",
        r"head.decoder.query_position.\1.",
    ),
    *deformable_detr.RULES,
]
CONVERTER = Converter(RULES, untie, stack)
