"""The configuration: keys, yaml files, and what is checked before anything else is done."""

from .building import ConfigError, build_config, override
from .choices import check_choices
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
