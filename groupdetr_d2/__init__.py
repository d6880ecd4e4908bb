"""Group DETR (ICCV 2023, arXiv 2207.13085) as a Detectron2 plugin.

Importing the package registers its meta-architectures, variants and backbones with Detectron2.
"""

from . import modeling, variants
from .config import add_groupdetr_config

__version__ = "0.1.0"
__all__ = ["add_groupdetr_config", "modeling", "variants"]
