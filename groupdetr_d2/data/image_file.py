"""Reading image files."""

from pathlib import Path

import numpy as np
import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from ..errors import UserError

ORIENTATION = 0x0112  # the EXIF tag, and what turns a picture with it upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ROTATED = {5, 6, 7, 8}  # orientations that exchange width and height
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class ImageReadError(UserError):
    """An image could not be read or is not of the recorded size."""


def read_bgr(path: str | Path) -> np.ndarray:
    """Reads an image file as (H, W, 3) uint8, BGR.

    Raises:
        ImageReadError: naming the file.
    """
    try:
        return read_array(path, "BGR")
    except Exception as error:  # an image library can raise anything
        raise ImageReadError(f"image {path} cannot be read: {error}") from error


def read_array(path: str | Path, image_format: str) -> np.ndarray:
    """Reads an image file of any mode and bit depth as (H, W, 3) uint8.

    It is turned as its EXIF tag says, transparency is dropped, and of values above 255 the highest
    eight of sixteen bits are taken: Pillow's own conversion makes them all white.

    Args:
        image_format: RGB or BGR.
    """
    with Path(path).open("rb") as file, Image.open(file) as image:
        image.load()
        orientation = orientation_of(image)
        picture: Image.Image = image
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            picture = Image.fromarray(_eight_bits(np.asarray(image)))
        method = TURNS.get(orientation)
        turned = picture if method is None else picture.transpose(method)
        return convert_PIL_to_numpy(turned, image_format)


def orientation_of(image: Image.Image) -> int:
    """Reads the EXIF orientation of an image, 0 if there is none or it is unreadable."""
    try:
        return image.getexif().get(ORIENTATION, 0)
    except Exception:  # a broken tag is no broken picture
        return 0


def channels_first(image: np.ndarray) -> torch.Tensor:
    """Makes a tensor (3, H, W) of an image (H, W, 3)."""
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    divisor = 256 if values.max(initial=0) > 255 else 1
    return np.clip(values // divisor, 0, 255).astype(np.uint8)


def find_image_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """Finds the images of a folder, and if `deep` of its subfolders, ordered by name."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES)
