"""Weights of transformers' backbones, which it reads itself: it knows the names of all its ages."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from ..modeling.timm_models import build_timm, is_timm
from ..modeling.transformers_backbone import (
    CONFIG,
    TransformersBackbone,
    config_text,
    parse_config,
    split_address,
)
from .files import CheckpointError
from .hub import FolderModel, HubModel, is_address, parse_address
from .hub_config import KINDS
from .hub_weights import backbone_file

logger = logging.getLogger(__name__)


def pretrained_backbone(
    weights: str, model: nn.Module
) -> tuple[dict[str, Tensor], list[str]] | None:
    """Reads the weights of a model's backbone from a folder or an address of transformers.

    Args:
        weights: what MODEL.WEIGHTS is.
        model: the detector.

    Returns:
        the tensors by their names in the detector, and the names of those that its backbone does
        not have; None if the detector has no such backbone, or this is a file or a detector.

    Raises:
        CheckpointError: the weights cannot be had, or are those of another model.
    """
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, TransformersBackbone)]
    if not found or not (is_address(weights) or Path(weights, CONFIG).is_file()):
        return None
    (name, backbone), *_ = found
    try:
        config = parse_config(config_text(weights))
    except UserError as error:
        raise CheckpointError(f"MODEL.WEIGHTS {weights}: {error}") from error
    if config.model_type in KINDS:
        return None
    theirs_kind, own_kind = (_kind_of(x) for x in (config, backbone.model.config))
    if theirs_kind != own_kind:
        raise CheckpointError(
            f"MODEL.WEIGHTS {weights} is a {theirs_kind}, and MODEL.TRANSFORMERS.NAME a "
            f"{own_kind}: give one model for both"
        )
    loaded, report = _read(weights, backbone.model)
    known = set(backbone.model.state_dict()) - set(report["missing_keys"])
    tensors = {
        f"{name}.model.{key}": value for key, value in loaded.state_dict().items() if key in known
    }
    logger.info("%s has a %s: %d tensors for the backbone", weights, own_kind, len(tensors))
    return tensors, sorted(report["unexpected_keys"])


def _kind_of(config: Any) -> str:
    """The type of a model; of timm's, which share one, the name of its architecture."""
    return f"{config.backbone} of timm" if is_timm(config) else config.model_type


def _read(weights: str, own: Any) -> tuple[nn.Module, dict[str, Any]]:
    is_folder = Path(weights).is_dir()
    if is_timm(own.config):
        source = FolderModel(Path(weights)) if is_folder else HubModel(parse_address(weights))
        return _read_timm(weights, own, str(backbone_file(source)))
    place, revision = (weights, None) if is_folder else split_address(weights)
    options = {} if revision is None else {"revision": revision}
    try:
        return type(own).from_pretrained(
            place, config=own.config, output_loading_info=True, **options
        )
    except Exception as error:  # networks, files and other shapes raise many kinds
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"MODEL.WEIGHTS {weights}: transformers cannot read its weights "
            f"({type(error).__name__}: {said}). Without a network, download the model elsewhere "
            "and give its folder"
        ) from error


def _read_timm(weights: str, own: Any, file: str) -> tuple[nn.Module, dict[str, Any]]:
    try:
        loaded = build_timm(own.config, list(own.out_features), file)
    except Exception as error:  # files and other shapes raise many kinds
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"MODEL.WEIGHTS {weights}: timm cannot read {file} ({type(error).__name__}: {said})"
        ) from error
    return loaded, {"missing_keys": [], "unexpected_keys": []}  # timm reads all or nothing
