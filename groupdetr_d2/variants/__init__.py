"""DETR variants, one file a paper. Importing this package registers all of them."""

from . import (
    conditional_detr,
    dab_deformable_detr,
    dab_detr,
    deformable_detr,
    dino,
    mask2former,
    petr,
    sam_detr,
)

__all__ = [
    "conditional_detr",
    "dab_deformable_detr",
    "dab_detr",
    "deformable_detr",
    "dino",
    "mask2former",
    "petr",
    "sam_detr",
]
