"""Reading image files."""

from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image

from ..errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


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


def find_image_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """The images of a folder, and if `deep` of those in it, in the order of their names."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES)
