"""GridMask (Chen et al., 2020, arXiv 2001.04086): squares of a grid are cut out of images."""

import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Sets the squares of a grid to 0, in training alone.

    One grid is drawn for all images of a call, as in PETR. The stripes between the squares are
    kept: about a quarter of the area goes.

    Args:
        probability: that there is a grid at all.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, images: Tensor) -> Tensor:
        """Masks normalised images (..., H, W); they come back as they are in evaluation."""
        if not self.training or not self.probability or torch.rand(()) >= self.probability:
            return images
        height, width = images.shape[-2:]
        period = int(torch.randint(2, max(height, 3), ()))
        first_row, first_column = torch.randint(period, (2,)).tolist()
        kept = grid_mask(height, width, period=period, first=(first_row, first_column))
        return images * kept.to(images.device, images.dtype, non_blocking=True)


def grid_mask(height: int, width: int, *, period: int, first: tuple[int, int]) -> Tensor:
    """Makes a grid (height, width) bool, True on the stripes.

    Stripes are half a period wide, and the middle of a canvas half as large again is taken, so
    that a grid begins outside the image.

    Args:
        period: distance of stripes, in pixels.
        first: the row and the column of the canvas at which a stripe begins.
    """
    stripe = min(max(int(period * 0.5 + 0.5), 1), period - 1)
    rows, columns = (
        _on_stripes(size, period, begin, stripe)
        for size, begin in zip((height, width), first, strict=True)
    )
    return rows[:, None] | columns[None]


def _on_stripes(size: int, period: int, begin: int, stripe: int) -> Tensor:
    canvas = int(1.5 * size)
    place = torch.arange(canvas) - begin
    number = torch.div(place, period, rounding_mode="floor")  # of the stripe
    # the official code draws as many stripes as there are whole periods in the canvas
    marked = (number >= 0) & (number < canvas // period) & (place % period < stripe)
    start = (canvas - size) // 2
    return marked[start : start + size]
