"""VoVNetV2 (Lee and Park, CVPR Workshops 2019 and CVPR 2020), the backbone of PETR.

A block runs a chain of 3 x 3 convolutions, concatenates all of their outputs, and weighs the
channels of the result ("effective squeeze-and-excitation", eSE). Statistics of the norms are fixed,
while their weights and biases are trained, as in PETR.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ..errors import UserError
from ..layers.recompute import run_layer

STAGES = ("stage2", "stage3", "stage4", "stage5")


class FixedStatisticsNorm(nn.Module):
    """Batch normalisation with the running statistics of a checkpoint, in training too.

    Weight and bias are trained, unlike those of Detectron2's FrozenBN.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, H, W)."""
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(x, *statistics, self.weight, self.bias, False, 0.0, self.eps)


class ConvNorm(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1):
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = FixedStatisticsNorm(out_channels)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H', W')."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class OSABlock(nn.Module):
    """One-shot aggregation: a chain of convolutions, all of whose outputs are used at its end.

    Args:
        is_residual: whether the input is added to the output.
    """

    def __init__(
        self,
        in_channels: int,
        conv_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        is_residual: bool,
    ):
        super().__init__()
        widths = [in_channels, *[conv_channels] * num_layers]
        self.layers = nn.ModuleList(ConvNorm(n, conv_channels, kernel_size=3) for n in widths[:-1])
        self.concat = ConvNorm(sum(widths), out_channels, kernel_size=1)
        self.attention = nn.Conv2d(out_channels, out_channels, 1)
        self.is_residual = is_residual

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H, W)."""
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        out = self.concat(torch.cat(outputs, 1))
        out = out * F.hardsigmoid(self.attention(out.mean((2, 3), keepdim=True)))
        return out + x if self.is_residual else out


class VoVNet(Backbone):
    """A stem of stride 4 and four stages, of strides 4, 8, 16 and 32.

    Args:
        stem_channels: the first two convolutions of the stem; the third has twice as many.
        conv_channels, out_channels: of the blocks of each stage.
        blocks: number of blocks in each stage.
        num_layers: 3 x 3 convolutions of a block.
        out_features: which of "stage2" .. "stage5" are returned; later stages are not built.
        freeze_at: 1 freezes the stem, 2 the first stage too, and so on; 0 freezes nothing.
        recompute: whether backward computes a block anew instead of keeping its activations.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        stem_channels: int,
        conv_channels: Sequence[int],
        out_channels: Sequence[int],
        blocks: Sequence[int],
        num_layers: int,
        out_features: Sequence[str],
        freeze_at: int = 0,
        recompute: bool = False,
    ):
        super().__init__()
        self._out_features, self.recompute = list(out_features), recompute
        self._out_feature_channels, self._out_feature_strides = {}, {}
        last = max(STAGES.index(name) for name in out_features)
        self.stem = nn.Sequential(
            ConvNorm(in_channels, stem_channels, kernel_size=3, stride=2),
            ConvNorm(stem_channels, stem_channels, kernel_size=3),
            ConvNorm(stem_channels, 2 * stem_channels, kernel_size=3, stride=2),
        )
        self.stages, channels = nn.ModuleDict(), 2 * stem_channels
        for i, name in enumerate(STAGES[: last + 1]):
            self.stages[name] = nn.ModuleList(
                OSABlock(
                    out_channels[i] if block else channels,
                    conv_channels[i],
                    out_channels[i],
                    num_layers=num_layers,
                    is_residual=block > 0,
                )
                for block in range(blocks[i])
            )
            channels = out_channels[i]
            self._out_feature_channels[name] = channels
            self._out_feature_strides[name] = 2 ** (i + 2)
        for part in [self.stem, *self.stages.values()][:freeze_at]:
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps images (B, 3, H, W) to the feature maps by name."""
        outputs = {}
        x = self.stem(x)
        for i, (name, stage) in enumerate(self.stages.items()):
            if i:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            for block in stage.children():
                x = run_layer(block, x, recompute=self.recompute)
            outputs[name] = x
        return {name: outputs[name] for name in self._out_features}


@BACKBONE_REGISTRY.register()
def build_vovnet_backbone(cfg, input_shape: ShapeSpec) -> VoVNet:
    """Builds VoVNetV2 from MODEL.VOVNET.*, V2-99 by default, with the outputs of IN_FEATURES.

    Raises:
        UserError: MODEL.DETR.IN_FEATURES has a name that is none of its stages.
    """
    vovnet, wanted = cfg.MODEL.VOVNET, list(cfg.MODEL.DETR.IN_FEATURES)
    if not wanted or not set(wanted) <= set(STAGES):
        raise UserError(
            f"MODEL.DETR.IN_FEATURES is {wanted}, and build_vovnet_backbone returns "
            f"{', '.join(STAGES)}"
        )
    return VoVNet(
        in_channels=input_shape.channels,
        stem_channels=vovnet.STEM_CHANNELS,
        conv_channels=vovnet.CONV_CHANNELS,
        out_channels=vovnet.OUT_CHANNELS,
        blocks=vovnet.BLOCKS,
        num_layers=vovnet.NUM_LAYERS,
        out_features=wanted,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        recompute=cfg.MODEL.DETR.RECOMPUTE,
    )
