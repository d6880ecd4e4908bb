"""Group DETR (ICCV 2023, arXiv 2207.13085) as a Detectron2 plugin.

Importing the package registers its meta-architectures, variants and backbones with Detectron2.
"""

import sys

__version__ = "0.1.0"
__all__ = ["Predictor", "add_groupdetr_config", "modeling", "variants"]

try:
    from . import modeling, variants
    from .config import add_groupdetr_config
    from .inference.predictor import Predictor
except ModuleNotFoundError as error:
    if sys.argv[1:2] != ["env"]:  # `python -m groupdetr_d2 env` is there to say what is missing
        raise ModuleNotFoundError(
            f"{error}. `python -m groupdetr_d2 env` says what is missing and how to mend it",
            name=error.name,
        ) from error
