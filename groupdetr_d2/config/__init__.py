"""The configuration: keys, yaml files, and what is checked before anything else is done."""

from .keys import add_groupdetr_config

__all__ = ["add_groupdetr_config"]
