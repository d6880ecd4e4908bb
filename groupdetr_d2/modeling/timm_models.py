"""Models of timm, which transformers wraps: their configurations, names of maps, and weights."""

from typing import Any

import torch

from ..errors import UserError

KIND = "timm_backbone"  # transformers' model_type


def as_transformers(content: dict) -> dict:
    """Returns the content of a config.json of timm's in transformers' terms; others stay.

    Batch norms keep their statistics and are not trained, as those of Detectron2's ResNets.
    """
    if "architecture" not in content or "model_type" in content:
        return content
    return {
        "model_type": KIND,
        "backbone": content["architecture"],
        "freeze_batch_norm_2d": True,
    }


def is_timm(config: Any) -> bool:
    """Tells whether a configuration is of a model of timm."""
    return config.model_type == KIND


def map_names(config: Any) -> list[str]:
    """Lists the names of all maps of a model of timm, which the model alone knows.

    Raises:
        UserError: timm is not installed.
    """
    try:
        import timm  # noqa: F401  which transformers imports
    except ImportError as error:
        raise UserError(
            f"{config.backbone} is a model of timm ({error}): pip install 'groupdetr_d2[timm]'"
        ) from error
    with torch.device("meta"):
        return list(_build(config, [-1]).stage_names)


def build_timm(config: Any, out_features: list[str], weights_file: str = "") -> Any:
    """Builds a model of timm with maps of these names, and with a file's weights if it is given.

    ViTs take images of any size whose sides their patches divide.
    """
    names = map_names(config)
    options: dict[str, Any] = {}
    if weights_file:
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": weights_file}}
    model = _build(config, [names.index(name) for name in out_features], **options)
    if str(getattr(model._backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        model.register_forward_hook(_channels_first)
    return model


def _build(config: Any, out_indices: list[int], **options: Any) -> Any:
    from transformers import AutoBackbone

    config = type(config).from_dict({**config.to_dict(), "out_indices": out_indices})
    try:
        return AutoBackbone.from_config(config, dynamic_img_size=True, **options)
    except TypeError:  # most models take any size, and have no such argument
        return AutoBackbone.from_config(config, **options)


def _channels_first(model: Any, images: Any, output: Any) -> Any:
    output.feature_maps = tuple(x.permute(0, 3, 1, 2).contiguous() for x in output.feature_maps)
    return output
