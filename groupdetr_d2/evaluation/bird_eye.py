"""A bird's-eye view: the vehicle in the middle, forward is up, and the boxes around it."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..data.nuscenes.geometry import YAW, corners_of
from .colours import class_colour
from .drawn_boxes import DrawnBoxes
from .lettering import put_text

REACH = 55.0  # metres from the middle to an edge
RING = 10  # metres from ring to ring
SHOWN_SPEED = 0.5  # metres per second from which a velocity is drawn
SHIFT = 4  # bits behind the point of OpenCV's coordinates
GROUND, LINES, LETTERS, WHITE = (28, 26, 24), (70, 66, 62), (170, 165, 160), (255, 255, 255)
VEHICLE = np.array([[0, 2.4], [0.95, 1.2], [0.95, -2.2], [-0.95, -2.2], [-0.95, 1.2]])  # metres


def draw_bird_eye(
    truth: DrawnBoxes | None, found: DrawnBoxes | None, names: Sequence[str], side: int
) -> np.ndarray:
    """Draws a square picture (side, side, 3) BGR of the frame of the lidar from above.

    Detections are filled with the colours of their classes. True objects are outlines, white ones
    where detections are drawn, too. A line leads from the centre of a box out through its front; an
    arrow shows the way that an object goes in one second. Rings are 10 metres apart.
    """
    picture = np.full((side, side, 3), GROUND, dtype=np.uint8)
    _draw_rings(picture)
    if found is not None:
        _fill(picture, found)
        _draw_outlines(picture, found, found.colours())
    if truth is not None:
        colours = truth.colours() if found is None else [WHITE] * len(truth)
        _draw_outlines(picture, truth, colours)
    _draw_vehicle(picture)
    _draw_legend(picture, truth, found, names)
    return picture


def places_of(points: np.ndarray, side: int) -> np.ndarray:
    """Computes the pixels (..., 2) of points (..., 2+) in metres, x to the right and y up."""
    pixels_a_metre = side / (2 * REACH)
    return side / 2 + points[..., :2] * [pixels_a_metre, -pixels_a_metre]


def _fixed(points: np.ndarray, side: int) -> np.ndarray:
    """Computes OpenCV's integer coordinates with fractions; far away they are cut off."""
    # OpenCV counts from the middle of a pixel
    places = np.clip(places_of(points, side) - 0.5, -4 * side, 5 * side)
    return np.round(places * 2**SHIFT).astype(np.int32)


def _draw_rings(picture: np.ndarray) -> None:
    side, size = len(picture), _letters(picture)
    middle = (side // 2, side // 2)
    cv2.line(picture, (middle[0], 0), (middle[0], side), LINES, 1)
    cv2.line(picture, (0, middle[1]), (side, middle[1]), LINES, 1)
    for metres in range(RING, int(REACH * 1.5), RING):
        radius = round(metres * side / (2 * REACH))
        cv2.circle(picture, middle, radius, LINES, 1, cv2.LINE_AA)
        if metres < REACH:
            away = round(radius * 0.5**0.5)  # lower right, where the road seldom is
            place = (middle[0] + away + 3, middle[1] + away + 3)
            put_text(picture, f"{metres} m", place, size, LETTERS)


def _letters(picture: np.ndarray) -> float:
    return max(0.33, len(picture) / 1800)


def _draw_vehicle(picture: np.ndarray) -> None:
    corners = _fixed(VEHICLE, len(picture))
    cv2.fillPoly(picture, [corners], (200, 200, 200), cv2.LINE_AA, SHIFT)
    cv2.polylines(picture, [corners], True, (0, 0, 0), 1, cv2.LINE_AA, SHIFT)


def _ground_corners(boxes: np.ndarray) -> np.ndarray:
    """Computes the corners (n, 4, 2) of boxes seen from above; the first two are the front's."""
    return corners_of(boxes)[:, [0, 1, 5, 4], :2]


def _fill(picture: np.ndarray, drawn: DrawnBoxes) -> None:
    filled = picture.copy()
    for corners, colour in zip(_ground_corners(drawn.boxes), drawn.colours(), strict=True):
        cv2.fillPoly(filled, [_fixed(corners, len(picture))], colour, cv2.LINE_AA, SHIFT)
    cv2.addWeighted(filled, 0.6, picture, 0.4, 0, dst=picture)


def _draw_outlines(
    picture: np.ndarray, drawn: DrawnBoxes, colours: Sequence[tuple[int, int, int]]
) -> None:
    side = len(picture)
    thickness = max(1, round(side / 700))
    corners = _ground_corners(drawn.boxes)
    for box, own, colour in zip(drawn.boxes, corners, colours, strict=True):
        outline = _fixed(own, side)
        cv2.polylines(picture, [outline], True, colour, thickness, cv2.LINE_AA, SHIFT)
        heading = np.array([np.cos(box[YAW]), np.sin(box[YAW])])
        ends = np.stack([box[:2], box[:2] + heading * (box[4] / 2 + 1)])
        cv2.polylines(picture, [_fixed(ends, side)], False, colour, thickness, cv2.LINE_AA, SHIFT)
        if np.linalg.norm(box[7:9]) > SHOWN_SPEED:  # false where it is unknown
            _draw_arrow(picture, np.stack([box[:2], box[:2] + box[7:9]]), colour)


def _draw_arrow(picture: np.ndarray, ends: np.ndarray, colour: tuple[int, int, int]) -> None:
    side = len(picture)
    length = float(np.linalg.norm(ends[1] - ends[0])) * side / (2 * REACH)
    start, end = (tuple(int(v) for v in point) for point in _fixed(ends, side))
    tip = min(0.5, 6 / max(length, 1))  # pixels of the head
    cv2.arrowedLine(picture, start, end, colour, 1, cv2.LINE_AA, SHIFT, tip)


def _draw_legend(
    picture: np.ndarray, truth: DrawnBoxes | None, found: DrawnBoxes | None, names: Sequence[str]
) -> None:
    """Lists the classes that are drawn, lower left, and what outlines and fillings are, above."""
    side, size = len(picture), _letters(picture)
    step = round(38 * size) + 2
    present = {int(c) for drawn in (truth, found) if drawn is not None for c in drawn.classes}
    for row, category in enumerate(sorted(present, reverse=True)):
        bottom = side - 6 - row * step
        corner = (6, bottom - step // 2 - 1)
        cv2.rectangle(picture, corner, (6 + step // 2, bottom), class_colour(category), -1)
        text = names[category]
        put_text(picture, text, (12 + step // 2, bottom), size, WHITE, outlined=True)
    counts = [
        f"{title} {len(drawn)}"
        for title, drawn in (("true (outlines)", truth), ("found (filled)", found))
        if drawn is not None
    ]
    for row, text in enumerate(counts):
        put_text(picture, text, (6, (row + 1) * step), size, WHITE, outlined=True)
