"""Reading image files."""

import functools
import logging
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from ..errors import UserError

logger = logging.getLogger(__name__)
PIXEL_LIMIT = "GROUPDETR_MAX_PIXELS"  # an environment variable
if os.getenv(PIXEL_LIMIT, "").isdigit():
    Image.MAX_IMAGE_PIXELS = int(os.environ[PIXEL_LIMIT]) or None
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
# of images that a folder's own search passes over; given by name they are read if Pillow can
PASSED_OVER = {".jfif", ".gif", ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".tga", ".dcm"}


class ImageReadError(UserError):
    """An image could not be read or is not of the recorded size."""


def read_bgr(path: str | Path) -> np.ndarray:
    """Reads an image file as (H, W, 3) uint8, BGR.

    Raises:
        ImageReadError: naming the file.
    """
    try:
        return read_array(path, "BGR")
    except Image.DecompressionBombError as error:
        raise ImageReadError(
            f"image {path} cannot be read: {error}. If it is yours, the environment variable "
            f"{PIXEL_LIMIT} allows more pixels"
        ) from error
    except Exception as error:  # an image library can raise anything
        raise ImageReadError(f"image {path} cannot be read: {error}") from error


def read_array(path: str | Path, image_format: str) -> np.ndarray:
    """Reads an image file of any mode and bit depth as (H, W, 3) uint8.

    It is turned as its EXIF tag says, transparency is dropped, numbers are made bytes by
    :func:`eight_bits`, and of several pages or frames the first is taken, which the log says.

    Args:
        image_format: RGB or BGR.
    """
    check_is_regular(path)
    with Path(path).open("rb") as file, Image.open(file) as image:
        image.load()
        _say_pages(str(path), getattr(image, "n_frames", 1))
        return array_of(image, image_format)


def array_of(image: Image.Image, image_format: str) -> np.ndarray:
    """Makes (H, W, 3) uint8 of one of Pillow's images, of any mode, upright.

    Args:
        image_format: RGB or BGR.
    """
    method = TURNS.get(orientation_of(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    return convert_PIL_to_numpy(image if method is None else image.transpose(method), image_format)


def read_any(image: Any) -> np.ndarray:
    """Makes (H, W, 3) uint8 BGR of what a user has for an image.

    Args:
        image: a path; one of Pillow's images; an array that :func:`as_bgr` takes; a tensor (3, H,
            W) or (1, H, W), RGB, of numbers that :func:`eight_bits` takes.

    Raises:
        ImageReadError: it is none of these, or the file cannot be read.
    """
    if isinstance(image, (str, Path)):
        return read_bgr(image)
    if isinstance(image, Image.Image):
        return array_of(image, "BGR")
    if isinstance(image, np.ndarray):
        return as_bgr(image)
    if isinstance(image, torch.Tensor):
        return _bgr_of_tensor(image)
    kind = type(image).__name__
    hint = ". Keyframes are for models of several cameras" if kind == "dict" else ""
    raise ImageReadError(f"a {kind} is no image: give a path or an array{hint}")


def _bgr_of_tensor(image: torch.Tensor) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.is_complex():
        raise ImageReadError(
            f"a tensor of shape {tuple(image.shape)} and type {image.dtype} is no image: it has to "
            "be (3, height, width) RGB or (1, height, width) grey"
        )
    numbers = image.detach().cpu()
    values = numbers.float() if numbers.dtype in (torch.bfloat16, torch.float16) else numbers
    return as_bgr(values.flip(0).permute(1, 2, 0).numpy())  # BGR


def orientation_of(image: Image.Image) -> int:
    """Reads the EXIF orientation of an image, 0 if there is none or it is unreadable."""
    try:
        return image.getexif().get(ORIENTATION, 0)
    except Exception:  # a broken tag is no broken picture
        return 0


def channels_first(image: np.ndarray) -> torch.Tensor:
    """Makes a tensor (3, H, W) of an image (H, W, 3)."""
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def picture_of_input(item: dict, image_format: str) -> np.ndarray:
    """Makes an image (H, W, 3) BGR of the "image" (3, H, W) of a model's input."""
    image = item["image"].permute(1, 2, 0).cpu().numpy().astype(np.uint8)
    return np.ascontiguousarray(image if image_format == "BGR" else image[..., ::-1])


def check_is_regular(path: str | Path) -> None:
    """Checks that a path is a file: opening a pipe would wait for a writer.

    Raises:
        OSError: it is a folder, a pipe, a socket, a link to itself, or nothing.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise OSError(f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, no file")


@functools.lru_cache(maxsize=1024)
def _say_pages(path: str, number: int) -> None:
    if number > 1:
        logger.warning("image %s has %d pages or frames: the first is used", path, number)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Makes bytes of numbers of any range, by one rule.

    Bytes stay as they are. Numbers of other types that lie within 0 and 255 are rounded, floats
    that lie within 0 and 1 are multiplied by 255 first. Any other range, as that of thermal or
    X-ray pictures, is stretched from its smallest to its largest finite number over 0 to 255.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 1:
        numbers = numbers * 255
    elif low < 0 or high > 255:
        numbers = (numbers - low) * (255 / max(high - low, np.finfo(np.float64).tiny))
    return np.clip(np.nan_to_num(np.round(numbers), nan=0, posinf=255, neginf=0), 0, 255).astype(
        np.uint8
    )


def as_bgr(image: np.ndarray) -> np.ndarray:
    """Makes (H, W, 3) uint8 of an array: grey (H, W) or (H, W, 1), BGR or BGRA, of any type.

    Raises:
        ImageReadError: naming its shape and type.
    """
    is_number = image.dtype == bool or np.issubdtype(image.dtype, np.number)
    is_real = is_number and not np.issubdtype(image.dtype, np.complexfloating)
    grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    has_colour = image.ndim == 3 and image.shape[2] in (3, 4)
    if not is_real or not image.size or not (grey or has_colour):
        raise ImageReadError(
            f"an array of shape {image.shape} and type {image.dtype} is no image: it has to be "
            "(height, width), (height, width, 3) BGR or (height, width, 4) BGRA, of numbers"
        )
    values = eight_bits(image)
    if grey:
        return np.ascontiguousarray(np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2))
    return np.ascontiguousarray(values[..., :3])


def find_image_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """Finds the images of a folder, and if `deep` of its subfolders, ordered by name."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES)


def passed_over(folder: Path) -> str:
    """Says what a search of a folder's own images leaves out; empty if that is nothing."""
    entries = list(folder.iterdir())
    kinds = Counter(p.suffix.lower() for p in entries if p.suffix.lower() in PASSED_OVER)
    parts = [f"{count} {suffix}" for suffix, count in sorted(kinds.items())]
    folders = sum(p.is_dir() for p in entries)
    if folders:
        parts.append(f"{folders} folders ('{folder}/**/*.jpg' looks into them)")
    return f"{folder}: passed over {', '.join(parts)}" if parts else ""
