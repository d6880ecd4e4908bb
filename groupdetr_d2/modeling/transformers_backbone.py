"""Backbones of the transformers package: DINOv2, DINOv3, Swin, ConvNeXt and what else it has.

One wrapper gives the feature maps of any model that its AutoBackbone builds. A model is built from
a configuration alone, which is a config.json; its weights come from MODEL.WEIGHTS.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ..errors import UserError
from ..layers.recompute import recomputed
from .backbone import check_in_features
from .timm_models import as_transformers, build_timm, is_timm, map_names
from .vit import SCALE_OF_LEVEL, TOP_LEVEL, ViTPyramid, check_levels

logger = logging.getLogger(__name__)
NAME = "build_transformers_backbone"
CONFIG = "config.json"
MARK = "json "  # before a configuration as a text, which yacs would take for a section without it
# keys of a config.json that say nothing of the backbone, or ask for a precision
UNUSED = ("id2label", "label2id", "architectures", "_name_or_path", "dtype", "torch_dtype")
LEVELS = (*SCALE_OF_LEVEL, TOP_LEVEL)
IMAGE = (224, 448)  # height and width that the sides of patches, 14 and 16, and stride 32 divide


class TransformersBackbone(Backbone):
    """A model of AutoBackbone as a backbone of Detectron2; its feature maps stay as they are.

    No mask tells it what is padding. Parameters that no feature map depends on are not trained.

    Args:
        model: the model, which returns the maps of its `out_features`.
        strides: for the name of each map, the pixels of an image that a cell has.
        recompute: whether backward computes activations again, in models that can do it.

    Attributes:
        patch_size: the stride of the last map.
    """

    def __init__(self, model: Any, strides: Mapping[str, int], *, recompute: bool = False):
        super().__init__()
        self.model = model
        self._out_features, self._out_feature_strides = list(strides), dict(strides)
        self._out_feature_channels = dict(zip(strides, model.channels, strict=True))
        self.patch_size = list(strides.values())[-1]
        if recompute and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable()
            for module in model.modules():
                if hasattr(module, "_gradient_checkpointing_func"):
                    module._gradient_checkpointing_func = recomputed
        elif recompute:
            logger.warning("MODEL.DETR.RECOMPUTE: a %s cannot do it", type(model).__name__)

    @property
    def size_divisibility(self) -> int:
        """The multiple of an image's sides with which every map covers the whole image."""
        return math.lcm(*self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Computes of images (B, 3, H, W) the feature maps (B, channels, h, w) by name."""
        return dict(zip(self._out_features, self.model(x).feature_maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_transformers_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Builds a model of transformers from MODEL.TRANSFORMERS.*, with random weights.

    With IN_FEATURES such as "stage4" these are the model's own maps; with "p3", "p4" and so on they
    are those of ViTDet's pyramid on its last map, which is meant for plain ViTs.

    Raises:
        UserError: transformers is not installed, the configuration cannot be had, it is of no
            backbone, or IN_FEATURES are not its maps.
    """
    keys, wanted = cfg.MODEL.TRANSFORMERS, list(cfg.MODEL.DETR.IN_FEATURES)
    config = parse_config(keys.CONFIG or config_text(keys.NAME))
    stages = _stages(config)
    has_pyramid = bool(wanted) and set(wanted) <= set(LEVELS)
    if has_pyramid:
        check_levels(wanted)
    else:
        check_in_features(cfg, [*stages, *LEVELS])
    model = _model_of(config, stages[-1:] if has_pyramid else [x for x in stages if x in wanted])
    strides = _strides(model)
    recompute = cfg.MODEL.DETR.RECOMPUTE
    if not has_pyramid:
        named = dict(zip(model.out_features, strides, strict=True))
        return TransformersBackbone(model, named, recompute=recompute)
    # the pyramid takes powers of two alone; it reads the true stride as the size of a patch
    net = TransformersBackbone(model, {"last_feat": 16}, recompute=recompute)
    net.patch_size = strides[-1]
    return ViTPyramid(net, wanted, cfg.MODEL.VIT.PYRAMID_CHANNELS)


def settle_transformers(cfg) -> None:
    """Writes the configuration of the backbone into MODEL.TRANSFORMERS.CONFIG, if it has one.

    Checkpoints of the run then build their model without the folder or the hub of its NAME.
    """
    if cfg.MODEL.BACKBONE.NAME == NAME and not cfg.MODEL.TRANSFORMERS.CONFIG:
        cfg.MODEL.TRANSFORMERS.CONFIG = config_text(cfg.MODEL.TRANSFORMERS.NAME)


def import_transformers() -> ModuleType:
    """Imports transformers, which is an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{NAME} needs transformers ({error}): pip install 'groupdetr_d2[transformers]'"
        ) from error
    return transformers


def split_address(name: str) -> tuple[str, str | None]:
    """Splits an address of the Hugging Face hub, "owner/name@revision", with hf:// or without."""
    repository, _, revision = name.removeprefix("hf://").partition("@")
    return repository, revision or None


def config_text(name: str) -> str:
    """Reads the configuration of a model, as a text for :func:`parse_config`.

    Args:
        name: a folder with a config.json, or an address of the Hugging Face hub.

    Raises:
        UserError: there is none, or it cannot be fetched.
    """
    if not name:
        raise UserError(
            f"{NAME} needs MODEL.TRANSFORMERS.NAME: a folder with a {CONFIG}, or a model of the "
            "hub such as facebook/dinov2-base"
        )
    path = Path(name, CONFIG)
    path = path if path.is_file() else _fetched(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {k: value for k, value in as_transformers(content).items() if k not in UNUSED}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"MODEL.TRANSFORMERS.NAME {name}: {path} cannot be read: {error}"
        ) from error
    return MARK + json.dumps(kept)


def _fetched(name: str) -> Path:
    """Fetches a model's configuration from the hub, or finds it in its cache."""
    import_transformers()
    from huggingface_hub import hf_hub_download  # which transformers itself imports

    repository, revision = split_address(name)
    try:
        return Path(hf_hub_download(repository, CONFIG, revision=revision))
    except Exception as error:  # networks, addresses and servers raise many kinds
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"MODEL.TRANSFORMERS.NAME {name} is no folder with a {CONFIG}, and the hub does not "
            f"give one ({type(error).__name__}: {said}). Without a network, download the model "
            "elsewhere and give its folder"
        ) from error


def parse_config(text: str) -> Any:
    """Makes the configuration object that a text of :func:`config_text` describes.

    Raises:
        UserError: transformers is not installed or does not know such a model.
    """
    transformers = import_transformers()
    try:
        content = json.loads(text.removeprefix(MARK))
        kind = content.get("model_type")
        return transformers.CONFIG_MAPPING[kind].from_dict(content)
    except KeyError as error:
        raise UserError(
            f"MODEL.TRANSFORMERS: transformers {transformers.__version__} knows no model of type "
            f"{error}"
        ) from error
    except Exception as error:  # a value of a wrong type can raise anything
        raise UserError(f"MODEL.TRANSFORMERS: the configuration is wrong ({error})") from error


def _stages(config: Any) -> list[str]:
    """Lists the names of a model's maps."""
    with _building(config):
        if is_timm(config):
            return map_names(config)
        return list(getattr(config, "stage_names", None) or [])


def _model_of(config: Any, out_features: list[str]) -> Any:
    """Builds a model with maps of these stages, in single precision.

    Batch norms keep their statistics and are not trained, as those of Detectron2's ResNets.
    """
    with _building(config):
        if is_timm(config):
            return build_timm(config, out_features).float()
        config.reshape_hidden_states = True  # maps rather than tokens, of ViTs
        config.out_features = out_features
        model = import_transformers().AutoBackbone.from_config(config).float()
        return FrozenBatchNorm2d.convert_frozen_batchnorm(model)


@contextmanager
def _building(config: Any) -> Iterator[None]:
    """Makes errors of building a model ours."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # numbers that do not fit raise many kinds
        said = " ".join(str(error).split(". ")[0].split())[:200]
        raise UserError(
            f"MODEL.TRANSFORMERS: a model of type {config.model_type} is no backbone that "
            f"transformers can build ({type(error).__name__}: {said})"
        ) from error


def _strides(model: nn.Module) -> list[int]:
    """Finds the strides of a model's maps with an empty image; unused parameters are frozen.

    Raises:
        UserError: it takes no images of this size, or returns no maps.
    """
    device = next(model.parameters()).device
    if device.type == "meta":
        model.to(device)  # with what models make of numbers alone, such as tables of positions
    image = torch.zeros(1, 3, *IMAGE, device=device)
    try:
        with torch.enable_grad():
            maps = model.eval()(image).feature_maps
    except Exception as error:  # of models that take images of one size alone, among others
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"MODEL.TRANSFORMERS: a {type(model).__name__} takes no image of {IMAGE[0]} x "
            f"{IMAGE[1]} pixels, so that it is no backbone of a detector ({said})"
        ) from error
    strides = [IMAGE[0] // x.shape[2] for x in maps]
    for x, stride in zip(maps, strides, strict=True):
        if x.shape[2:] != (IMAGE[0] // stride, IMAGE[1] // stride) or IMAGE[0] % stride:
            raise UserError(
                f"MODEL.TRANSFORMERS: a map of {type(model).__name__} has {tuple(x.shape[2:])} "
                f"cells for {IMAGE[0]} x {IMAGE[1]} pixels, which is no whole stride"
            )
    used = _leaves(maps)
    for parameter in model.parameters():
        if parameter not in used:
            parameter.requires_grad = False
    model.train()
    return strides


def _leaves(outputs: Iterable[Tensor]) -> set[Tensor]:
    """Finds the parameters that outputs depend on."""
    nodes = [x.grad_fn for x in outputs]
    seen, leaves = set(nodes), set()
    while nodes:
        node = nodes.pop()
        variable = getattr(node, "variable", None)  # of the nodes that collect gradients
        if variable is not None:
            leaves.add(variable)
        for following, _ in () if node is None else node.next_functions:
            if following not in seen:
                seen.add(following)
                nodes.append(following)
    return leaves
