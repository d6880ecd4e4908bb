"""Builds a configuration from a yaml and overrides, and explains what is wrong with either."""

import difflib
import os
import re
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode, get_cfg

from ..errors import UserError
from .choices import check_choices
from .files import find_config, nearest_configs
from .keys import add_groupdetr_config, all_keys


class ConfigError(UserError):
    """The configuration cannot be used; the message names the key and the remedy."""


def build_config(config_file: str = "", opts: Sequence | None = None) -> CfgNode:
    """Builds the configuration of a yaml with overrides, not frozen; nothing in it is evaluated.

    Args:
        config_file: a path, a path under `configs/`, or the name of a file there; none for the
            defaults.
        opts: overrides, ``["KEY", value, ...]``.

    Raises:
        ConfigError: a file or key does not exist (the nearest known key is named), or the file is
            no plain yaml.
    """
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    config_file = find_config(config_file)
    check_config_file(config_file)
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(_explain(error, cfg, config_file)) from error
    override(cfg, opts or [], config_file)
    return cfg


def check_config_file(config_file: str) -> None:
    """Checks that a configuration file exists, and is a yaml.

    Raises:
        ConfigError: naming the file, and the nearest of `configs/`.
    """
    if not config_file:
        return
    if config_file.endswith(".py"):
        raise ConfigError(
            f"{config_file} is one of Detectron2's LazyConfigs, which are Python code: "
            "groupdetr_d2 reads yaml alone; `configs/` of the package holds one for each model"
        )
    if not os.path.isfile(config_file):
        near = nearest_configs(config_file)
        raise ConfigError(
            f"the configuration file {config_file} does not exist; near names: {', '.join(near)}"
        )


def override(cfg: CfgNode, opts: Sequence, config_file: str = "") -> None:
    """Applies overrides ``["KEY", value, ...]`` in place.

    Raises:
        ConfigError: a key does not exist (the nearest is named), or a value is of another type.
        ChoiceError: a value is none of its key's words.
    """
    try:
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError, ValueError) as error:
        raise ConfigError(_explain(error, cfg, config_file)) from error
    check_choices(cfg)


def _explain(error: Exception, cfg: CfgNode, config_file: str) -> str:
    text = str(error if isinstance(error, yaml.YAMLError) or not error.args else error.args[0])
    match = re.search(r"Non-existent (?:config )?key: ([\w.]+)", text)
    if not match:
        hint = "; options such as --resume come before KEY VALUE pairs" if "pairs" in text else ""
        return f"{config_file or 'the command line'}: {text}{hint}"
    key = match[1]
    near = difflib.get_close_matches(key, all_keys(cfg), n=1, cutoff=0)
    return (
        f"{key} (in {config_file} or on the command line) is no known key; the nearest is {near[0]}"
    )
