"""Reading image files."""

from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image

from ..errors import UserError


class ImageReadError(UserError):
    """An image could not be read or is not of the recorded size."""


def read_bgr(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8, BGR.

    Raises:
        ImageReadError: naming the file.
    """
    try:
        return read_image(str(path), format="BGR")
    except Exception as error:  # an image library can raise anything
        raise ImageReadError(f"image {path} cannot be read: {error}") from error
