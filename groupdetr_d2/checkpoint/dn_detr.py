"""Official DN-DETR checkpoints (IDEA-Research/DN-DETR, models/DN_DAB_DETR)."""

from . import dab_detr
from .official import Converter

RULES = [(r"^label_enc\.", "head.denoising.label_embedding."), *dab_detr.RULES]
CONVERTER = Converter(RULES)
