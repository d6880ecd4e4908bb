"""Official DINO checkpoints (IDEA-Research/DINO), 4-scale, ResNet or Swin."""

from . import dab_deformable_detr
from .deformable_detr import stack, untie
from .official import Converter

RULES = [
    (r"^transformer\.tgt_embed\.weight$", "head.queries.content.bank.weight"),
    *dab_deformable_detr.RULES,
]
CONVERTER = Converter(RULES, untie, stack)
