"""The neck: from backbone features to the sequence that an encoder reads."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.position_encoding import SinePositionEmbedding
from ..structures import Memory


class Neck(nn.Module):
    """Projects feature maps to d_model channels, embeds positions, flattens.

    Args:
        in_features: names of the backbone's outputs to use, fine to coarse.
        projections: from each of them to d_model channels; those beyond read the last output (the
            first of them) and one another, each halving the resolution.
        position: computes the positions (B, H, W, C) of a feature map from its padding mask
            (B, H, W); it must be that of the checkpoint.
    """

    def __init__(
        self,
        in_features: list[str],
        projections: Sequence[nn.Module],
        *,
        position: nn.Module,
    ):
        super().__init__()
        self.in_features = in_features
        self.projections = nn.ModuleList(projections)
        self.position = position

    def forward(self, features: dict[str, Tensor], padding_mask: Tensor | None) -> Memory:
        """Returns the memory of all levels, not yet encoded.

        Args:
            features: (B, channels, H, W) by name.
            padding_mask: (B, height, width) bool of the image batch, True on padding, or None.
        """
        maps = [
            projection(features[name])
            for name, projection in zip(self.in_features, self.projections, strict=False)
        ]
        coarser = features[self.in_features[-1]]
        for projection in self.projections[len(maps) :]:
            coarser = projection(coarser)
            maps.append(coarser)
        masks = [_mask_like(x, padding_mask) for x in maps]
        pos = [self.position(mask) for mask in masks]  # (B, H, W, C) each
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        return Memory(
            features=torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1),  # (B, S, C)
            pos=torch.cat([p.flatten(1, 2).to(dtype) for p in pos], dim=1),  # (B, S, C)
            padding_mask=None
            if padding_mask is None
            else torch.cat([m.flatten(1) for m in masks], dim=1),  # (B, S)
            spatial_shapes=tuple((x.shape[2], x.shape[3]) for x in maps),
        )


def _mask_like(feature_map: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Resizes the images' padding mask to a map by nearest neighbour, (B, H, W) bool."""
    batch, _, height, width = feature_map.shape
    if padding_mask is None:
        return torch.zeros(batch, height, width, dtype=torch.bool, device=feature_map.device)
    return F.interpolate(padding_mask[:, None].float(), size=(height, width))[:, 0].bool()


def build_neck(cfg, backbone_shape) -> Neck:
    """Builds the neck from MODEL.DETR.IN_FEATURES, EXTRA_LEVELS, PROJECTION_NORM, POSITION_*."""
    detr = cfg.MODEL.DETR
    position = SinePositionEmbedding(
        detr.HIDDEN_DIM // 2, detr.POSITION_TEMPERATURE, detr.POSITION_OFFSET
    )
    projections = build_projections(cfg, backbone_shape)
    return Neck(list(detr.IN_FEATURES), projections, position=position)


def build_projections(cfg, backbone_shape) -> Sequence[nn.Module]:
    """Builds a 1 x 1 convolution per feature map, and a 3 x 3 one of stride 2 per extra level.

    MODEL.DETR.PROJECTION_NORM may add a GroupNorm.
    """
    d_model, norm = cfg.MODEL.DETR.HIDDEN_DIM, cfg.MODEL.DETR.PROJECTION_NORM
    channels = [backbone_shape[name].channels for name in cfg.MODEL.DETR.IN_FEATURES]
    convolutions = [nn.Conv2d(c, d_model, 1) for c in channels]
    for i in range(cfg.MODEL.DETR.EXTRA_LEVELS):
        before = d_model if i else channels[-1]
        convolutions.append(nn.Conv2d(before, d_model, 3, stride=2, padding=1))
    if not norm:
        return convolutions
    return [normed(convolution) for convolution in convolutions]


def normed(convolution: nn.Conv2d) -> nn.Sequential:
    """Adds a GroupNorm to a projection, which then starts from Xavier's distribution."""
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.get_parameter("bias"))
    return nn.Sequential(convolution, nn.GroupNorm(32, convolution.out_channels))
