"""Functions of mask logits: masks in pixels, their quality, and the boxes around them."""

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS = 2**24  # of masks that are resized at a time
EPS = 1e-6  # added to a mask's area


def masks_of(
    embeddings: Tensor,
    features: Tensor,
    stride: int,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Computes masks (n, height, width) bool of an output size, and their quality (n,)."""
    largest = max(features[0].numel() * stride**2, output_size[0] * output_size[1])
    masks, quality = [], []
    size = len(embeddings) if torch.jit.is_tracing() else max(1, PIXELS // largest)
    for part in embeddings.split(size):
        logits = (part @ features.flatten(1)).unflatten(1, features.shape[1:])
        logits = resized_logits(logits, stride, image_size, output_size)
        mask = logits > 0
        masks.append(mask)
        quality.append(quality_of(logits, mask))
    return torch.cat(masks), torch.cat(quality)


def resized_logits(
    logits: Tensor, stride: int, image_size: tuple[int, int], output_size: tuple[int, int]
) -> Tensor:
    """Resizes logits (n, h, w) to the padded image, cuts off the padding, and resizes again."""
    height, width = image_size
    padded = (logits.shape[1] * stride, logits.shape[2] * stride)
    logits = _resize(logits[None], padded)[..., :height, :width]
    return _resize(logits, output_size)[0]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if not torch.jit.is_tracing() and tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def quality_of(logits: Tensor, masks: Tensor) -> Tensor:
    """Computes the mean probability of the pixels of masks, (..., height, width) -> (...)."""
    return (logits.sigmoid() * masks).sum((-2, -1)) / (masks.sum((-2, -1)) + EPS)


def boxes_around(masks: Tensor) -> Tensor:
    """Computes boxes xyxy (..., 4) around masks (..., height, width) bool; 0 for an empty one."""
    sides = []
    for covered in (masks.any(-2), masks.any(-1)):  # columns (..., width), rows (..., height)
        positions = torch.arange(covered.shape[-1], device=masks.device)
        last = torch.where(covered, positions + 1, 0).amax(-1)
        first = torch.where(covered, positions, covered.shape[-1]).amin(-1)
        sides.append((torch.minimum(first, last), last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], -1).float()
