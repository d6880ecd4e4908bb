"""The set-up of a run: from a yaml and the command line to a checked, frozen configuration."""

import difflib
import logging
import os
from argparse import Namespace

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import ConfigError, build_config, settle_device
from ..data.checks import DatasetError, check_classes
from ..data.custom import register_custom_datasets
from ..data.shapes import register_shapes
from .schedule import settle_schedule

logger = logging.getLogger(__name__)


def setup_config(args: Namespace) -> CfgNode:
    """Builds the frozen configuration of a run: data sets registered, device and seed settled.

    Args:
        args: `config_file`, `opts`, and the paths of one's own data set if there are any.
    """
    cfg = build_config(args.config_file, args.opts)
    for key in cfg.DATASETS.CUSTOM:  # --train-json and so on
        if getattr(args, key.lower(), None):
            cfg.DATASETS.CUSTOM[key] = getattr(args, key.lower())
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
    """Settles what this machine and the data decide, and checks it.

    Raises:
        DatasetError: a data set is not registered, or its files are wrong.
        ConfigError: the batch cannot be divided.
    """
    settle_device(cfg)
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
    """Checks that annotation files exist, and have as many classes as the model.

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
