"""DETR variants, a file a paper. Importing this package registers them all."""

from . import conditional_detr, dab_detr, sam_detr

__all__ = ["conditional_detr", "dab_detr", "sam_detr"]
