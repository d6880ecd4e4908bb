"""Backbones that Detectron2 does not build from a yaml as DETR needs them."""

from collections.abc import Iterable, Mapping

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.modeling.backbone import (
    Backbone,
    ResNet,
    SwinTransformer,
    build_resnet_backbone,
)
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn
from torchvision.ops import StochasticDepth

from ..errors import UserError


def build_checked_backbone(cfg) -> Backbone:
    """Builds the backbone of the configuration, which may be any of Detectron2's registry.

    Raises:
        UserError: it does not return the feature maps of MODEL.DETR.IN_FEATURES, or not in the
            order from fine to coarse, or it needs a package that is not installed.
    """
    try:
        backbone = build_backbone(cfg)
    except ModuleNotFoundError as error:  # Detectron2's ViT and MViT import timm
        raise UserError(f"{cfg.MODEL.BACKBONE.NAME}: {error}; pip install {error.name}") from error
    shape: Mapping[str, ShapeSpec] = backbone.output_shape()
    check_in_features(cfg, shape)
    strides = [shape[name].stride for name in cfg.MODEL.DETR.IN_FEATURES]
    if None not in strides and strides != sorted(strides):
        raise UserError(
            f"MODEL.DETR.IN_FEATURES {list(cfg.MODEL.DETR.IN_FEATURES)} have strides {strides}: "
            "list them from fine to coarse"
        )
    return backbone


def check_in_features(cfg, available: Iterable[str]) -> None:
    """Checks that a backbone returns the feature maps that the neck reads.

    Raises:
        UserError: naming those that it returns.
    """
    known, wanted = list(available), list(cfg.MODEL.DETR.IN_FEATURES)
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        keys = "MODEL.RESNETS.OUT_FEATURES, MODEL.FPN.IN_FEATURES and their like choose them"
        raise UserError(
            f"MODEL.DETR.IN_FEATURES has {', '.join(missing) or 'nothing'}, but "
            f"{cfg.MODEL.BACKBONE.NAME} returns {', '.join(known)} ({keys})"
        )


def padding_of(backbone: nn.Module) -> tuple[int, int]:
    """Returns what a backbone's images are padded to: a divisor of their sides, and a square.

    Either is 0 where the backbone takes images of any size. Detectron2's `SimpleFeaturePyramid`
    misspells the divisor, and its `SwinTransformer` declares one that it does not have.
    """
    constraints = backbone.padding_constraints
    divisor = getattr(backbone, "size_divisibility", 0)
    divisor = constraints.get("size_divisiblity", divisor)
    return constraints.get("size_divisibility", divisor), constraints.get("square_size", 0)


@BACKBONE_REGISTRY.register()
def build_resnet_dc5_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """Builds a ResNet with torchvision's DC5: res5 at stride 1 with dilations [1, 2, 2].

    Detectron2's own RES5_DILATION 2 dilates the first block too: the same weights load, but the
    outputs differ and a DETR trained with torchvision's loses its AP.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH < 50 or resnets.RES5_DILATION != 1:
        raise UserError(
            "build_resnet_dc5_backbone needs MODEL.RESNETS.DEPTH of at least 50 and leaves "
            "MODEL.RESNETS.RES5_DILATION at 1: it dilates res5 by itself"
        )
    resnet = build_resnet_backbone(cfg, input_shape)
    width = resnets.RES2_OUT_CHANNELS * 4  # of res4, which res5 reads
    res5 = ResNet.make_stage(
        BottleneckBlock,
        3,
        stride_per_block=[1, 1, 1],
        dilation_per_block=[1, 2, 2],
        in_channels=width,
        out_channels=2 * width,
        bottleneck_channels=width // 2,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        norm=resnets.NORM,
    )
    stages = [list(stage) for stage in resnet.stages[:3]]
    return ResNet(
        resnet.stem,
        [*stages, res5],
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg, input_shape: ShapeSpec) -> SwinTransformer:
    """Builds Detectron2's Swin Transformer from MODEL.SWIN.*, with the outputs of IN_FEATURES.

    Its outputs are p0, p1, p2 and p3, of strides 4, 8, 16 and 32.
    Parameters have the names of Microsoft's checkpoints; the norms of the outputs are not in those.
    Blocks are left out by torchvision's `StochasticDepth`: Detectron2 would import timm for that.
    """
    swin, stages = cfg.MODEL.SWIN, [f"p{i}" for i in range(len(cfg.MODEL.SWIN.DEPTHS))]
    check_in_features(cfg, stages)
    model = SwinTransformer(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=0.0,
        out_indices=[i for i, name in enumerate(stages) if name in cfg.MODEL.DETR.IN_FEATURES],
        use_checkpoint=cfg.MODEL.DETR.RECOMPUTE,
    )
    blocks = [block for layer in model.layers for block in layer.blocks]
    for i, block in enumerate(blocks):
        block.drop_path = StochasticDepth(swin.DROP_PATH_RATE * i / (len(blocks) - 1), "row")
    return model


class ChannelsLastStem(BasicStem):
    """A ResNet's stem that keeps channels last in memory, and with it all that follows.

    PyTorch pools such maps faster on a CPU; values are the same but for rounding.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (B, 3, H, W) to (B, C, H/4, W/4)."""
        return super().forward(x.contiguous(memory_format=torch.channels_last))


@BACKBONE_REGISTRY.register()
def build_small_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """Builds a ResNet of one basic block per stage, to be trained from scratch on a CPU.

    MODEL.SMALL_RESNET.CHANNELS gives the channels of the stem and of res2, res3, ...
    """
    stem, *stage_channels = cfg.MODEL.SMALL_RESNET.CHANNELS
    norm = cfg.MODEL.RESNETS.NORM
    stages, channels = [], stem
    for i, out_channels in enumerate(stage_channels):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                1,
                stride_per_block=[1 if i == 0 else 2],
                in_channels=channels,
                out_channels=out_channels,
                norm=norm,
            )
        )
        channels = out_channels
    return ResNet(
        ChannelsLastStem(input_shape.channels, stem, norm),
        stages,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
