"""Group DETR (ICCV 2023, arXiv 2207.13085) as a Detectron2 plugin.

`add_groupdetr_config` registers the meta-architectures, variants and backbones with Detectron2.
Names are imported when they are first used, so that `import groupdetr_d2` alone is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictor", "add_groupdetr_config"]

_HOMES = {"Predictor": ".inference.predictor", "add_groupdetr_config": ".config"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. `python -m groupdetr_d2 env` says what is missing and how to mend it",
            name=error.name,
        ) from error
