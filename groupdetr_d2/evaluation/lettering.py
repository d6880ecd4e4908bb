"""Text on pictures: class names and file names of any script.

matplotlib's own font has the Latin, Greek, Cyrillic, Arabic and Hebrew letters, Noto Sans CJK the
Chinese, Japanese and Korean ones; the fonts of the machine add others.
"""

import functools
import importlib.util
import logging
from pathlib import Path

import cv2
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)
CV_FONT = cv2.FONT_HERSHEY_SIMPLEX  # ASCII alone
PIXELS_AT_ONE = 30  # height of OpenCV's letters at size 1


def put_text(
    image: np.ndarray,
    text: str,
    place: tuple[int, int],
    size: float,
    colour: tuple[int, int, int],
    *,
    outlined: bool = False,
) -> np.ndarray:
    """Writes a line on an image (H, W, 3) BGR, in place where it can.

    Args:
        place: x and y of the left end of the baseline.
        size: of OpenCV's letters; those of other fonts are as high.
        outlined: whether the letters have a black edge.
    """
    if text.isascii():
        if outlined:
            cv2.putText(image, text, place, CV_FONT, size, (0, 0, 0), 3, cv2.LINE_AA)
        return cv2.putText(image, text, place, CV_FONT, size, colour, 1, cv2.LINE_AA)
    canvas = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    ImageDraw.Draw(canvas).text(
        place,
        drawable(text),
        fill=colour[::-1],
        font=ImageFont.truetype(font_for(text) or fonts()[0], max(9, round(PIXELS_AT_ONE * size))),
        anchor="ls",
        stroke_width=int(outlined),
        stroke_fill=(0, 0, 0),
    )
    image[:] = np.asarray(canvas)[..., ::-1]
    return image


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
def fonts() -> list[str]:
    """The font files: matplotlib's own, Noto Sans CJK, then those of this machine."""
    own = font_manager.findfont("DejaVu Sans")
    system = font_manager.findSystemFonts()
    return [
        own,
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
