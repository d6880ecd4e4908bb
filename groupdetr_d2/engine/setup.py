"""The set-up of a run: from a yaml and the command line to a checked, frozen configuration."""

import logging
from argparse import Namespace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import setup_logger

from ..checkpoint.files import check_exists
from ..config import ConfigError, build_config, check_choices, check_ranges
from ..config.files import find_config
from ..data.checks import check_registered
from ..data.custom import register_custom_datasets
from ..data.nuscenes.cubes import register_cubes_of
from ..data.shapes import register_shapes
from ..distributed import first_process_first
from ..modeling.meta_arch import task_of
from ..modeling.transformers_backbone import settle_transformers
from .run_folder import check_is_new, prepare_folder, take_folder
from .schedule import settle_schedule
from .terminal import FILE_ALONE, LOGGERS, prepare_terminal

logger = logging.getLogger(__name__)


def setup_config(args: Namespace) -> CfgNode:
    """Builds the frozen configuration of a run: data sets registered, device and seed settled.

    Args:
        args: see :func:`config_of_arguments`.

    Raises:
        CheckpointError: there is no file at MODEL.WEIGHTS, which a new run begins with.
    """
    cfg = config_of_arguments(args)
    is_resumed = getattr(args, "resume", False) and any(Path(cfg.OUTPUT_DIR).glob("model_*.pth"))
    if not is_resumed:
        check_exists(cfg.MODEL.WEIGHTS)  # before data are read, or generated
    args.config_file = find_config(args.config_file)  # which Detectron2 opens again
    is_eval = getattr(args, "eval_only", False)
    if comm.is_main_process():
        prepare_folder(cfg.OUTPUT_DIR)
        if not is_eval:
            take_folder(cfg.OUTPUT_DIR)
        if not is_eval and not getattr(args, "resume", False):
            check_is_new(cfg.OUTPUT_DIR)
    comm.synchronize()
    set_up_log(cfg.OUTPUT_DIR)
    settle_config(cfg)
    check_registered((*(() if is_eval else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST))
    if is_eval and not cfg.DATASETS.TEST:
        raise ConfigError(
            "--eval-only has nothing to evaluate on: give --val-json and --val-images, or "
            "DATASETS.TEST \"('name',)\""
        )
    cfg.freeze()
    return cfg


def config_of_arguments(args: Namespace) -> CfgNode:
    """Builds the configuration that a command's arguments ask for.

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
    return cfg


def set_up_log(folder: str) -> None:
    """Sets up the log: everything in `log.txt`, what a person needs on the terminal."""
    for name in LOGGERS:
        setup_logger(folder, distributed_rank=comm.get_rank(), name=name)
    prepare_terminal()


def log_details(cfg: CfgNode, args: Namespace) -> None:
    """Writes environment, command line and whole configuration to the log file alone."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses compilers
    details = {
        "environment": collect_env_info(),
        "processes": f"{comm.get_world_size()}, of which this is number {comm.get_rank()}",
        "arguments": str(args),
        "configuration": cfg.dump(),
    }
    for name, text in details.items():
        logger.info("%s:\n%s", name, text, extra=FILE_ALONE)
    folder = cfg.OUTPUT_DIR
    logger.info("%s/log.txt has environment and configuration, config.yaml the latter", folder)


def settled(cfg: CfgNode) -> CfgNode:
    """Returns a settled, frozen copy of a configuration, whatever script it comes from."""
    if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
        setup_logger()  # as Detectron2's trainer does where no script has
    cfg = cfg.clone()
    cfg.defrost()
    check_choices(cfg)
    check_ranges(cfg)
    settle_config(cfg)
    cfg.freeze()
    return cfg


def scheduled(cfg: CfgNode, num_images: int | None) -> CfgNode:
    """Returns a copy whose schedule is settled.

    Args:
        num_images: of an epoch; None if it is not known.
    """
    cfg = cfg.clone()
    cfg.defrost()
    settle_schedule(cfg, num_images)
    cfg.freeze()
    return cfg


def with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    """Returns a copy with the seed that a resumed run goes on with."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg


def write_config(cfg: CfgNode) -> None:
    """Writes `config.yaml` into the output folder, in the first process."""
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump())


def check_test_sets(cfg: CfgNode) -> None:
    """Checks the test sets before the training rather than after it.

    Raises:
        DatasetError: a data set is not registered, or something is wrong with it.
        UserError: it could not be evaluated on.
    """
    check_registered(cfg.DATASETS.TEST)
    task = task_of(cfg)
    with first_process_first():  # it may have to make an index, or the set itself
        task.data.check_classes(cfg, cfg.DATASETS.TEST)
        for name in cfg.DATASETS.TEST:
            number = len(task.data.images_of(name, is_evaluated=True))
            task.data.check_evaluation(name)
            logger.info("%d %s of %s to evaluate on", number, task.sees, name)


def settle_config(cfg: CfgNode) -> None:
    """Settles what this machine and the data decide, and checks it; it can be done again.

    Raises:
        DatasetError: the files of one's own data set are wrong.
        ConfigError: the batch cannot be divided.
    """
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()
    with first_process_first():  # it parses large files, which the others then map
        register_custom_datasets(cfg)
        settle_transformers(cfg)
    register_shapes(cfg)
    register_cubes_of(cfg)
    _check_batch(cfg)
    _check_augmentation(cfg)


def _check_augmentation(cfg: CfgNode) -> None:
    if cfg.TEST.AUG.ENABLED and task_of(cfg).merge is None:
        raise ConfigError(
            f"TEST.AUG.ENABLED is True, and {cfg.MODEL.META_ARCHITECTURE} has no test-time "
            "augmentation: set it False"
        )


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
