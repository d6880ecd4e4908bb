"""Group DETR (ICCV 2023, arXiv 2207.13085) as a Detectron2 plugin.

`add_groupdetr_config` registers the meta-architectures, variants and backbones with Detectron2.
Names are imported when they are first used, so that `import groupdetr_d2` alone is quick.
"""

import importlib
import logging
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "Trainer",
    "add_groupdetr_config",
    "build_optimizer",
    "build_training_loader",
    "evaluate",
    "export",
    "model_zoo",
    "train",
]

_HOMES = {
    "Predictor": ".inference.predictor",
    "Trainer": ".engine.trainer",
    "add_groupdetr_config": ".config",
    "build_optimizer": ".engine.solver",
    "build_training_loader": ".engine.training_data",
    "evaluate": ".api",
    "export": ".api",
    "train": ".api",
}
# scripts set Detectron2's logger up, which then shows the lines of this package, too
logging.getLogger(__name__).parent = logging.getLogger("detectron2")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        if name not in _HOMES:
            return importlib.import_module(f".{name}", __name__)
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. `python -m groupdetr_d2 env` says what is missing and how to mend it",
            name=error.name,
        ) from error
