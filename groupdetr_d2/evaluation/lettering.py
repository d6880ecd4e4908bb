"""Text on pictures: class names and file names of any script.

matplotlib's own font has the Latin, Greek, Cyrillic, Arabic and Hebrew letters, Noto Sans CJK the
Chinese, Japanese and Korean ones; the fonts of the machine add others.
"""

import functools
import importlib.util
import logging
import math
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)
PIXELS_AT_ONE = 30  # height of a font of size 1
SMALLEST = 9  # pixels of a font that can be read
ASCII_HEIGHT = 0.83  # of the capitals of DejaVu Sans, relative to the ascent of its font


def put_text(
    image: np.ndarray,
    text: str,
    place: tuple[int, int],
    size: float,
    colour: tuple[int, int, int],
    *,
    outlined: bool = False,
) -> np.ndarray:
    """Writes a line on an image (H, W, 3) BGR, in place; what leaves the image is cut off.

    Args:
        place: x and y of the left end of the baseline.
        size: 1 for letters of a font of 30 pixels.
        outlined: whether the letters have a black edge.
    """
    edge = int(outlined)
    left, up, right, down = text_box(text, size)
    left, up, right, down = left - edge, up + edge, right + edge, down + edge
    if right <= left or up + down <= 0:
        return image
    corner = (place[0] + left, place[1] - up)
    for ink, stroke in (((0, 0, 0), 1), (colour, 0))[0 if outlined else 1 :]:
        letters = Image.new("L", (right - left, up + down))
        ImageDraw.Draw(letters).text(
            (-left, up),
            drawable(text),
            fill=255,
            font=font_of(text, size),
            anchor="ls",
            stroke_width=stroke,
        )
        _blend(image, np.asarray(letters), corner, ink)
    return image


def _blend(
    image: np.ndarray, share: np.ndarray, corner: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """Lays a colour over a part of an image, by shares (h, w) of 0 to 255."""
    x, y = corner
    height, width = image.shape[:2]
    share = share[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)]
    own = image[max(0, y) :, max(0, x) :][: share.shape[0], : share.shape[1]]
    weight = share[..., None] / 255.0
    own[:] = np.round(own * (1 - weight) + np.array(colour) * weight)


def text_box(text: str, size: float) -> tuple[int, int, int, int]:
    """Measures a line: pixels from the start of its baseline to the left, top, right and bottom.

    The first is negative where letters begin before the start. Lines of one size are as high as
    their font, whatever their letters.
    """
    font = font_of(text, size)
    left, _, right, _ = font.getbbox(drawable(text), anchor="ls")
    up, down = font.getmetrics()
    up = round(ASCII_HEIGHT * up) if text.isascii() else up  # nothing above its capitals
    return math.floor(left), up, math.ceil(right), down


def font_of(text: str, size: float) -> ImageFont.FreeTypeFont:
    """Finds a font that has the letters of a text, in a size as for :func:`put_text`."""
    path = None if text.isascii() else font_for(text)
    return _font(path or own_font(), max(SMALLEST, round(PIXELS_AT_ONE * size)))


@functools.lru_cache(maxsize=64)
def _font(path: str, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, pixels)


def drawable(text: str) -> str:
    """A text in which letters that no font of this machine has are replaced by their codes."""
    missing = [letter for letter in text if not letter.isascii() and not _homes_of(letter)]
    if not missing:
        return text
    _warn("".join(dict.fromkeys(missing))[:20])
    return "".join(f"U+{ord(x):04X}" if x in missing else x for x in text)


@functools.cache
def _warn(letters: str) -> None:
    logger.warning(
        "no font of this machine has %s: pictures show codes in their place. Installing a font "
        "that has them helps (pip install noto-cjk-sans-otc has Chinese, Japanese and Korean)",
        letters.encode("utf-8", "replace").decode(),
    )


@functools.lru_cache(maxsize=1024)
def font_for(text: str) -> str | None:
    """The path of the first font that has all letters of a text; None if there is none."""
    homes = [set(_homes_of(letter)) for letter in text if not letter.isascii()]
    common = set.intersection(*homes) if homes else set()
    return next((path for path in fonts() if path in common), None)


@functools.lru_cache(maxsize=4096)
def _homes_of(letter: str) -> tuple[str, ...]:
    return tuple(path for path in fonts() if ord(letter) in _letters_of(path))


@functools.lru_cache(maxsize=256)
def _letters_of(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError, ValueError):
        return frozenset()


@functools.cache
def own_font() -> str:
    """The file of DejaVu Sans, which comes with matplotlib."""
    return font_manager.findfont("DejaVu Sans")


@functools.cache
def fonts() -> list[str]:
    """The font files: matplotlib's own, Noto Sans CJK, then those of this machine."""
    system = font_manager.findSystemFonts()
    return [
        own_font(),
        *_noto(),
        *sorted(path for path in system if path.lower().endswith((".ttf", ".otf", ".ttc"))),
    ]


def _noto() -> list[str]:
    package = importlib.util.find_spec("noto_cjk_sans_otc")
    folder = package and package.submodule_search_locations
    return [str(path) for path in sorted(Path(folder[0]).glob("*.ttc"))] if folder else []


def use_fonts_in_figures(names: tuple[str, ...]) -> None:
    """Lets matplotlib's figures use the fonts that have the letters of these names."""
    import matplotlib

    families = ["DejaVu Sans"]
    for name in names:
        path = None if name.isascii() else font_for(name)
        if path is not None:
            font_manager.fontManager.addfont(path)
            families.append(font_manager.FontProperties(fname=path).get_name())
    matplotlib.rcParams["font.family"] = list(dict.fromkeys(families))
