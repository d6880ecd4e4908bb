"""The configuration: keys, yaml files, and what is checked before anything else is done.

Names are imported when they are first used: finding a yaml needs neither PyTorch nor Detectron2.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .building import build_config, override
    from .choices import check_choices
    from .files import ConfigError
    from .keys import add_groupdetr_config
    from .ranges import check_ranges

__all__ = [
    "ConfigError",
    "add_groupdetr_config",
    "build_config",
    "check_choices",
    "check_ranges",
    "override",
]
_HOMES = {
    "ConfigError": ".files",
    "add_groupdetr_config": ".keys",
    "build_config": ".building",
    "check_choices": ".choices",
    "check_ranges": ".ranges",
    "override": ".building",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
