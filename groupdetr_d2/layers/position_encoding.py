"""Sine embeddings of coordinates and of feature-map positions, and the inverse sigmoid."""

import math

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Casts coordinates to float32 or keeps float64, whatever autocast does around them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sines(angles: Tensor) -> Tensor:
    """Maps angles (..., F) to their sine at even and cosine at odd channels."""
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def _frequencies(num_feats: int, temperature: float, device: torch.device) -> Tensor:
    channel = torch.arange(num_feats, device=device, dtype=torch.float32)
    exponent = 2 * torch.div(channel, 2, rounding_mode="floor") / num_feats
    return temperature**exponent


def sine_embedding(coords: Tensor, num_feats: int = 128, temperature: float = 10000) -> Tensor:
    """Embeds normalised coordinates (DAB-DETR, Sec. 4.1; the order y, x, w, h is DETR's).

    Args:
        coords: (..., D) in [0, 1], ordered x, y[, w, h]; D is 2 or 4.
        num_feats: channels per coordinate, an even number.
        temperature: 10000 for queries in every DETR of this package.

    Returns:
        (..., D * num_feats) y before x.
    """
    x, y, *extent = at_least_float32(coords).unbind(-1)
    angles = torch.stack([y, x, *extent], -1)[..., None] * 2 * math.pi
    return _sines(angles / _frequencies(num_feats, temperature, coords.device)).flatten(-2)


def image_position_embedding(
    padding_mask: Tensor,
    num_feats: int = 128,
    temperature: float = 10000,
    offset: float = 0.0,
) -> Tensor:
    """Embeds the positions of a feature map as DETR does, relative to its unpadded part.

    Args:
        padding_mask: (B, H, W) bool, True on padding.
        offset: 0 puts a cell's position at its far edge (DETR), 0.5 at its centre (SAM-DETR).

    Returns:
        (B, H, W, 2 * num_feats) float32, the y part before the x part.
    """
    valid = ~padding_mask
    y = valid.cumsum(1, dtype=torch.float32) - offset
    x = valid.cumsum(2, dtype=torch.float32) - offset
    height = valid.sum(1, keepdim=True, dtype=torch.float32) - offset
    width = valid.sum(2, keepdim=True, dtype=torch.float32) - offset
    # in the official order of additions: SAM-DETR's regions see rows that are padding alone
    y = y / (height + 1e-6 + offset) * 2 * math.pi
    x = x / (width + 1e-6 + offset) * 2 * math.pi
    frequencies = _frequencies(num_feats, temperature, padding_mask.device)
    return torch.cat([_sines(y[..., None] / frequencies), _sines(x[..., None] / frequencies)], -1)


def view_position_embedding(padding_mask: Tensor, num_feats: int = 128) -> Tensor:
    """Embeds view, row and column of the cells of several views as PETR does.

    An axis has its sines first and then its cosines, unlike the embeddings of DETR.

    Args:
        padding_mask: (B, V, H, W) bool, True on padding.

    Returns:
        (B, V, H, W, 3 * num_feats) float32, the parts of view, row and column.
    """
    valid, parts = ~padding_mask, []
    frequencies = _frequencies(num_feats, 10000, padding_mask.device)
    for axis in (1, 2, 3):
        place = valid.cumsum(axis, dtype=torch.float32)
        last = place.narrow(axis, place.shape[axis] - 1, 1)
        angles = (place / (last + 1e-6) * 2 * math.pi)[..., None] / frequencies
        parts += [angles[..., 0::2].sin(), angles[..., 1::2].cos()]
    return torch.cat(parts, -1)


class SinePositionEmbedding(nn.Module):
    """DETR's position embedding of a feature map, see :func:`image_position_embedding`."""

    def __init__(self, num_feats: int, temperature: float = 10000, offset: float = 0.0):
        super().__init__()
        self.num_feats, self.temperature, self.offset = num_feats, temperature, offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Embeds a mask (B, H, W), True on padding, as (B, H, W, 2 * num_feats) float32."""
        return image_position_embedding(padding_mask, self.num_feats, self.temperature, self.offset)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Computes the logit of `x`, bounded by `eps`, which must be that of the checkpoint."""
    x = at_least_float32(x)
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))
