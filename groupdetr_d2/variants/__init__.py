"""DETR variants, a file a paper. Importing this package registers them all."""

from . import conditional_detr, dab_deformable_detr, dab_detr, deformable_detr, sam_detr

__all__ = ["conditional_detr", "dab_deformable_detr", "dab_detr", "deformable_detr", "sam_detr"]
