"""Labels in pictures: none covers another, and none leaves the picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .colours import Colour, ink_on
from .lettering import put_text, text_box

ROOM = 2  # pixels between letters and the edge of their plate
SLIDES = 6  # places along each edge of a box
Place = tuple[int, int]  # x and y of a plate's upper left corner


@dataclass(frozen=True)
class Label:
    """A line of text that belongs to a box.

    Attributes:
        box_xyxy: in pixels of the picture.
        colour: BGR, of the plate behind the letters.
    """

    text: str
    box_xyxy: tuple[float, float, float, float]
    colour: Colour


def draw_labels(image: np.ndarray, labels: Sequence[Label], size: float) -> int:
    """Writes labels on plates, in this order, beside or in their boxes where there is room.

    One that finds no room is left out: its box has the colour of its class.

    Args:
        image: (H, W, 3) BGR, drawn on in place.
        size: of letters, see :func:`groupdetr_d2.evaluation.lettering.put_text`.

    Returns:
        the number of labels that were written.
    """
    taken = np.zeros(image.shape[:2], dtype=bool)
    return sum(_draw_one(image, taken, label, size) for label in labels)


def _draw_one(image: np.ndarray, taken: np.ndarray, label: Label, size: float) -> bool:
    text = fitting(label.text, size, taken.shape[1] - 2 * ROOM)
    left, up, right, down = text_box(text, size)
    width, height = right - left + 2 * ROOM, up + down + 2 * ROOM
    place = _free_place(taken, label.box_xyxy, (width, height)) if text else None
    if place is None:
        return False
    x, y = place
    own = (slice(y, y + height), slice(x, x + width))
    image[own], taken[own] = label.colour, True
    baseline = (x + ROOM - left, y + ROOM + up)
    put_text(image, text, baseline, size, ink_on(label.colour))
    return True


def fitting(text: str, size: float, width: int) -> str:
    """Cuts the end of a text that is wider than `width` pixels; dots stand for it."""
    if text_width(text, size) <= width:
        return text
    kept = next((n for n in range(len(text), 0, -1) if _is_fitting(text, n, size, width)), 0)
    return text[:kept].rstrip() + "..." if kept else ""


def _is_fitting(text: str, kept: int, size: float, width: int) -> bool:
    return text_width(text[:kept].rstrip() + "...", size) <= width


def text_width(text: str, size: float) -> int:
    """Measures a line of text, in pixels."""
    left, _, right, _ = text_box(text, size)
    return right - left


def _free_place(
    taken: np.ndarray, box_xyxy: Sequence[float], plate: tuple[int, int]
) -> Place | None:
    """Finds the first place of a plate (width, height) where no other is; None if there is none."""
    width, height = plate
    bounds = (taken.shape[1] - width, taken.shape[0] - height)
    if min(bounds) < 0:
        return None
    for x, y in _places(box_xyxy, plate):
        x, y = min(max(x, 0), bounds[0]), min(max(y, 0), bounds[1])
        if not taken[y : y + height, x : x + width].any():
            return x, y
    return None


def _places(box_xyxy: Sequence[float], plate: tuple[int, int]) -> Iterator[Place]:
    """Yields places above, inside, below and beside a box, the usual ones first."""
    x0, y0, x1, y1 = (int(round(min(max(float(v), -1e6), 1e6))) for v in box_xyxy)
    width, height = plate
    above, inside, bottom, below = y0 - height, y0 + 1, y1 - height, y1 + 1
    rows = (above, inside, below, bottom) if above >= 0 else (inside, below, bottom)
    across = np.linspace(x0, max(x1 - width, x0), SLIDES).round().astype(int).tolist()
    yield from ((across[0], y) for y in rows)
    yield from ((across[-1], y) for y in rows)
    yield from ((x, y) for y in rows for x in across[1:-1])
    down = np.linspace(y0, max(y1 - height, y0), SLIDES).round().astype(int).tolist()
    yield from ((x, y) for x in (x1 + 1, x0 - width) for y in down)
    yield from ((x0 + i * width // 2, y) for i in (-1, 1) for y in rows)
    yield from ((x, y0 - i * height) for i in (2, 3) for x in (x0, across[-1]))
