"""From a yaml and the command line to a checked, frozen configuration."""

import difflib
import logging
import os
import re
from argparse import Namespace
from collections.abc import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import add_groupdetr_config
from ..config.files import find_config
from ..data.checks import DatasetError, check_classes
from ..data.custom import register_custom_datasets
from ..data.shapes import register_shapes
from ..errors import UserError
from .schedule import settle_schedule

logger = logging.getLogger(__name__)
CUSTOM_FLAGS = ("train_json", "train_images", "val_json", "val_images")


class ConfigError(UserError):
    """The configuration cannot be used; the message names the key and the remedy."""


def build_config(config_file: str = "", opts: list | None = None) -> CfgNode:
    """The configuration of a yaml with overrides, not frozen; nothing in it is evaluated.

    Raises:
        ConfigError: a file or key does not exist (the nearest known key is named), or the file is
            no plain yaml.
    """
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    config_file = find_config(config_file)
    if config_file and not os.path.isfile(config_file):
        raise ConfigError(f"the configuration file {config_file} does not exist")
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(_explain(error, cfg, config_file)) from error
    override(cfg, opts or [], config_file)
    return cfg


def override(cfg: CfgNode, opts: Sequence, config_file: str = "") -> None:
    """Applies ``[KEY, value, ...]``.

    Raises:
        ConfigError: a key does not exist (the nearest is named), or a value is of another type.
    """
    try:
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError, ValueError) as error:
        raise ConfigError(_explain(error, cfg, config_file)) from error


def _explain(error: Exception, cfg: CfgNode, config_file: str) -> str:
    text = str(error if isinstance(error, yaml.YAMLError) or not error.args else error.args[0])
    match = re.search(r"Non-existent (?:config )?key: ([\w.]+)", text)
    if not match:
        hint = "; options such as --resume come before KEY VALUE pairs" if "pairs" in text else ""
        return f"{config_file or 'the command line'}: {text}{hint}"
    key = match[1]
    near = difflib.get_close_matches(key, _all_keys(cfg), n=1, cutoff=0)
    return (
        f"{key} (in {config_file} or on the command line) is no known key; the nearest is {near[0]}"
    )


def _all_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys.extend(_all_keys(value, f"{prefix}{key}."))
    return keys


def setup_config(args: Namespace) -> CfgNode:
    """The frozen configuration of a run: data sets registered, device, seed and classes settled.

    Args:
        args: `config_file`, `opts`, and the paths of one's own data set if there are any.
    """
    cfg = build_config(args.config_file, args.opts)
    for flag in CUSTOM_FLAGS:
        if getattr(args, flag, None):
            cfg.DATASETS.CUSTOM[flag.upper()] = getattr(args, flag)
    for which in ("TRAIN", "VAL"):
        if cfg.DATASETS.CUSTOM[f"{which}_IMAGES"] and not cfg.DATASETS.CUSTOM[f"{which}_JSON"]:
            flag = which.lower()
            raise ConfigError(f"--{flag}-images is given without --{flag}-json ANNOTATIONS")
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="groupdetr_d2")
    settle_config(cfg)
    if not getattr(args, "eval_only", False):
        check_data(cfg, cfg.DATASETS.TRAIN if cfg.SOLVER.EPOCHS else ())
        settle_schedule(cfg)
    cfg.freeze()
    return cfg


def settle_config(cfg: CfgNode) -> None:
    """Replaces what is left open by what this machine and the data say, and checks it."""
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()
    register_custom_datasets(cfg)
    register_shapes(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            raise DatasetError(
                f"data set {name} is not registered; near names: {', '.join(near) or 'none'}. For "
                "your own data use --train-json, --train-images, --val-json and --val-images"
            )
    _check_batch(cfg)


def check_data(cfg: CfgNode, names: tuple[str, ...]) -> None:
    """Annotation files exist, and have as many classes as the model.

    Raises:
        DatasetError: naming the set, and the file or both numbers.
    """
    for name in names:
        json_file = MetadataCatalog.get(name).get("json_file")
        if json_file and not os.path.isfile(json_file):
            raise DatasetError(
                f"data set {name}: {json_file} does not exist. Set $DETECTRON2_DATASETS (now "
                f"{os.getenv('DETECTRON2_DATASETS', 'datasets')}) to the folder that holds coco/, "
                "or name your own data with --train-json and so on"
            )
    check_classes(cfg, names)


def _check_batch(cfg: CfgNode) -> None:
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}) must be a multiple of the number "
            f"of processes ({world_size})"
        )
    parts = cfg.SOLVER.ACCUMULATE_STEPS
    if parts < 1 or (cfg.SOLVER.IMS_PER_BATCH // world_size) % parts:
        raise ConfigError(
            f"SOLVER.ACCUMULATE_STEPS ({parts}) must divide the images of a process "
            f"({cfg.SOLVER.IMS_PER_BATCH // world_size})"
        )
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        logger.warning("a CPU emulates float16, many times slower: use SOLVER.AMP.DTYPE bfloat16")
    if cfg.SOLVER.AMP.DTYPE not in ("float16", "bfloat16"):
        raise ConfigError(
            f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}; it can be float16 or bfloat16"
        )
