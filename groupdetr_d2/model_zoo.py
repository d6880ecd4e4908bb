"""Configurations and models by the name of a yaml, as `detectron2.model_zoo` has them.

::

    from groupdetr_d2 import model_zoo
    model = model_zoo.get("ConditionalDETR/group_conditional_detr_R_50_12ep.yaml")
"""

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from .checkpoint import GroupCheckpointer
from .config import ConfigError, build_config
from .config.files import check_config_file, find_config
from .modeling.meta_arch import SetPredictor


def get_config_file(config_path: str) -> str:
    """Returns the path of a yaml of this package.

    Args:
        config_path: its path under `configs/`, or its file name alone.

    Raises:
        ConfigError: there is no such yaml; near names are given.
    """
    path = find_config(config_path)
    check_config_file(path)
    return path


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """Returns the configuration of a yaml of this package, not frozen.

    Args:
        config_path: see :func:`get_config_file`.
        trained: whether MODEL.WEIGHTS shall be those of a model that was trained with it.

    Raises:
        ConfigError: there is no such yaml, or `trained` is asked for: nobody has published any.
    """
    if trained:
        raise ConfigError(
            f"there are no trained weights for {config_path} yet: train it, or turn an official "
            "checkpoint into one with `groupdetr-d2 convert`"
        )
    return build_config(get_config_file(config_path))


def get(config_path: str, trained: bool = False, device: str | None = None) -> SetPredictor:
    """Returns the model of a yaml in training mode, with the weights of MODEL.WEIGHTS.

    Args:
        config_path: see :func:`get_config_file`.
        trained: see :func:`get_config`.
        device: in place of MODEL.DEVICE.

    Raises:
        ConfigError: as :func:`get_config`.
        CheckpointError: MODEL.WEIGHTS is a file that a training has to make first; it is named.
    """
    cfg = get_config(config_path, trained)
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    model = build_model(cfg)
    GroupCheckpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    return model
