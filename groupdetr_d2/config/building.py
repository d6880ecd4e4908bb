"""Builds a configuration from a yaml and overrides, and explains what is wrong with either."""

import difflib
import re
from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg

from .choices import check_choices
from .files import ConfigError, check_config_file, find_config
from .keys import add_groupdetr_config, all_keys
from .ranges import check_ranges
from .yaml_file import YamlError, check_yaml


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
    if config_file:
        _merge_file(cfg, config_file)
    override(cfg, opts or [])
    return cfg


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    try:
        _check_sections(config_file, check_yaml(config_file), cfg)
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except YamlError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:  # a value of a wrong type can raise anything
        raise ConfigError(f"{config_file}: {_explain(error, cfg)}") from error


def _check_sections(config_file: str, content: dict, cfg: CfgNode, prefix: str = "") -> None:
    """Checks that sections of keys are sections.

    Raises:
        YamlError: naming the file and the section.
    """
    for key, value in content.items():
        if isinstance(cfg.get(key), CfgNode):
            if not isinstance(value, dict):
                raise YamlError(
                    f"{config_file}: {prefix}{key} is {value!r}; it is a section, such as "
                    f"{key}: {{{next(iter(cfg[key]))}: ...}}"
                )
            _check_sections(config_file, value, cfg[key], f"{prefix}{key}.")
        elif key == "VERSION" and not isinstance(value, int):
            raise YamlError(f"{config_file}: VERSION is {value!r}; it is 2")


def override(cfg: CfgNode, opts: Sequence) -> None:
    """Applies overrides ``["KEY", value, ...]`` in place.

    Raises:
        ConfigError: a key does not exist (the nearest is named), or a value is of another type.
        ChoiceError: a value is none of its key's words.
    """
    opts = list(opts)
    _check_pairs(opts)
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except Exception as error:  # a value of a wrong type can raise anything
            example = _example(cfg, key)
            raise ConfigError(
                f"the command line, {key} {value}: {_explain(error, cfg)}{example}"
            ) from error
    check_choices(cfg)
    check_ranges(cfg)


def _check_pairs(opts: list) -> None:
    """Checks that overrides are keys and values in turn.

    Raises:
        ConfigError: with a right example.
    """
    joined = [x for x in opts[0::2] if isinstance(x, str) and "=" in x]
    if joined:
        key, _, value = joined[0].partition("=")
        raise ConfigError(
            f"the command line: {joined[0]} has to be two words, KEY VALUE: {key} {value or '...'}"
        )
    if len(opts) % 2:
        raise ConfigError(
            f"the command line: {opts[-1]} stands alone; options such as --resume come before "
            "KEY VALUE pairs"
        )


def _example(cfg: CfgNode, key: str) -> str:
    """A right override of a key that exists; empty for any other."""
    for part in key.split("."):
        if not isinstance(cfg, CfgNode) or part not in cfg:
            return ""
        cfg = cfg[part]
    value = f'"{list(cfg)}"' if isinstance(cfg, (list, tuple)) else cfg
    return "" if isinstance(cfg, CfgNode) else f". A right one is: {key} {value}"


def _explain(error: Exception, cfg: CfgNode) -> str:
    text = str(error.args[0] if error.args else error)
    match = re.search(r"Non-existent (?:config )?key: ([\w.]+)", text)
    if not match:
        return " ".join(text.split())[:500] or type(error).__name__
    key = match[1]
    near = difflib.get_close_matches(key, all_keys(cfg), n=1, cutoff=0)
    return f"{key} is no known key; the nearest is {near[0]}"
