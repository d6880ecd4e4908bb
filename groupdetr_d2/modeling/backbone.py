"""Backbones that Detectron2 does not build from a yaml as DETR needs them."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import ResNet, SwinTransformer, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torchvision.ops import StochasticDepth

from ..errors import UserError


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
    """Builds Detectron2's Swin Transformer from MODEL.SWIN.*; p0, p1, ... have strides 4, 8, ...

    Parameters have the names of Microsoft's checkpoints; the norms of the outputs are not in those.
    Blocks are left out by torchvision's `StochasticDepth`: Detectron2 would import timm for that.
    """
    swin = cfg.MODEL.SWIN
    model = SwinTransformer(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=0.0,
        out_indices=[int(name.removeprefix("p")) for name in swin.OUT_FEATURES],
        use_checkpoint=cfg.MODEL.DETR.RECOMPUTE,
    )
    blocks = [block for layer in model.layers for block in layer.blocks]
    for i, block in enumerate(blocks):
        block.drop_path = StochasticDepth(swin.DROP_PATH_RATE * i / (len(blocks) - 1), "row")
    return model


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
        BasicStem(input_shape.channels, stem, norm),
        stages,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
