"""Pictures: boxes and masks on images, and sheets of images."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from .colours import class_colour
from .labels import Label, draw_labels, fitting
from .lettering import put_text

TILE_SIDE, TITLE_HEIGHT, TITLE_SIZE = 320, 20, 0.4
FAR = 2.0**20  # pixels; OpenCV counts no farther than 2**31


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    classes: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """Draws boxes, class names and scores on a copy of an image (H, W, 3) BGR.

    Labels neither cover one another nor leave the image. Those of the best detections come first,
    of true objects those of the smallest.
    """
    image = image.copy()
    size = letter_size(image.shape)
    thickness = max(1, round(4 * size - 0.6))
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    ranks = -_areas(boxes) if scores is None else np.asarray(scores, dtype=np.float64)
    order = np.argsort(-ranks, kind="stable").tolist()
    colours = [class_colour(int(category)) for category in classes]
    for i in reversed(order):
        x0, y0, x1, y1 = (int(round(float(v))) for v in np.clip(boxes[i], -FAR, FAR))
        cv2.rectangle(image, (x0, y0), (x1, y1), colours[i], thickness)
    texts = [names[int(category)] for category in classes]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
    draw_labels(image, [Label(texts[i], tuple(boxes[i]), colours[i]) for i in order], size)
    return image


def letter_size(shape: Sequence[int]) -> float:
    """Chooses the size of letters on an image of that (height, width, ...)."""
    return float(np.clip(min(shape[:2]) / 1300, 0.37, 2))


def _areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    sides = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def draw_masks(image: np.ndarray, masks: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Colours masks and draws their outlines on a copy of an image (H, W, 3) BGR.

    Args:
        masks: (n, height, width) bool, of any size; they are scaled to the image.
    """
    image = image.copy()
    size = (image.shape[1], image.shape[0])
    order = np.argsort(-masks.sum((1, 2)), kind="stable")  # small ones stay visible
    for mask, category in ((masks[i], classes[int(i)]) for i in order):
        scaled = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inside, colour = scaled > 0, class_colour(int(category))
        image[inside] = (0.55 * image[inside] + 0.45 * np.array(colour)).astype(np.uint8)
        outlines, _ = cv2.findContours(scaled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, outlines, -1, colour, 1)
    return image


def draw_tile(
    title: str, image: np.ndarray, draw: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Makes a picture for a sheet: the image scaled, drawn on at that scale, with a title.

    Args:
        image: (H, W, 3) BGR.
        draw: draws on the scaled image, and returns it.
    """
    image = scaled_to(image, TILE_SIDE)
    return put_title(draw(image), title, right=TILE_SIDE - image.shape[1])


def scaled_to(image: np.ndarray, side: int) -> np.ndarray:
    """Scales an image (H, W, 3) so that its longer side is `side`."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=how)


def put_title(image: np.ndarray, title: str, *, right: int = 0) -> np.ndarray:
    """Adds a line of text above an image, and black pixels on its right."""
    image = cv2.copyMakeBorder(image, TITLE_HEIGHT, 0, 0, right, cv2.BORDER_CONSTANT)
    text = fitting(title, TITLE_SIZE, image.shape[1] - 8)
    return put_text(image, text, (4, TITLE_HEIGHT - 6), TITLE_SIZE, (255, 255, 255))


def sheet(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lays tiles of one width side by side, row by row; a row is as high as its highest tile."""
    rows = [_row(tiles[i : i + columns], columns) for i in range(0, len(tiles), columns)]
    return np.vstack(rows)


def _row(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    height, width = max(len(tile) for tile in tiles), tiles[0].shape[1]
    row = np.zeros((height, columns * width, 3), dtype=np.uint8)
    for i, tile in enumerate(tiles):
        row[: len(tile), i * width : (i + 1) * width] = tile
    return row
