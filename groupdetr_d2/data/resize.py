"""Resizing by the shorter side, for images of any shape."""

import sys
from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

LARGEST_SIDE = 16_384  # pixels


class ResizeShortestSide(T.Augmentation):
    """Detectron2's `ResizeShortestEdge`, which leaves a picture of one row no pixel.

    Args:
        sizes: of the shorter side; one of them is drawn ("choice"), or a number between two
            ("range").
        max_size: bound of the longer side.
    """

    def __init__(
        self, sizes: int | Sequence[int], max_size: int = LARGEST_SIDE, sample_style: str = "choice"
    ):
        super().__init__()
        bound = min(max_size, LARGEST_SIDE, sys.maxsize)
        self.resize = T.ResizeShortestEdge(sizes, bound, sample_style)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Returns the transform of an image (H, W, 3)."""
        return _with_pixels(self.resize.get_transform(image))


class ResizeJitter(T.Augmentation):
    """Detectron2's `ResizeScale`, which leaves a picture of one row no pixel.

    The image that fits into a square is scaled by a random factor (large-scale jitter, Ghiasi et
    al., CVPR 2021).

    Args:
        side: of the square.
    """

    def __init__(self, min_scale: float, max_scale: float, side: int):
        super().__init__()
        self.resize = T.ResizeScale(min_scale, max_scale, side, side)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Returns the transform of an image (H, W, 3)."""
        return _with_pixels(self.resize.get_transform(image))


class ResizeByFactor(T.Augmentation):
    """Resizes an image by a factor, its longer side up to a bound."""

    def __init__(self, factor: float, max_size: int = LARGEST_SIDE):
        super().__init__()
        self.factor, self.max_size = factor, min(max_size, LARGEST_SIDE)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Returns the transform of an image (H, W, 3)."""
        height, width = image.shape[:2]
        factor = min(self.factor, self.max_size / max(height, width))
        size = round(factor * height), round(factor * width)
        return _with_pixels(T.ResizeTransform(height, width, *size))


def _with_pixels(found: T.Transform) -> T.Transform:
    if not isinstance(found, T.ResizeTransform):
        return found
    height, width = max(1, found.new_h), max(1, found.new_w)
    return T.ResizeTransform(found.h, found.w, height, width, found.interp)
