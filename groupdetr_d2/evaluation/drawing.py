"""Pictures: boxes and masks on images, sheets of images, training curves."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from .lettering import put_text
from .metrics_file import read_metrics

TILE_SIDE, TITLE_HEIGHT = 320, 20


def class_colour(index: int) -> tuple[int, int, int]:
    """Picks a bright BGR colour for a class."""
    hue = np.array([[[index * 47 % 180, 200, 255]]], dtype=np.uint8)
    blue, green, red = (int(c) for c in cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0])
    return blue, green, red


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    classes: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """Draws boxes, class names and scores on a copy of an image (H, W, 3) BGR."""
    image = image.copy()
    size = max(0.3, min(image.shape[:2]) / 1000)
    for i, (box, category) in enumerate(zip(boxes_xyxy, classes, strict=True)):
        x0, y0, x1, y1 = (int(round(float(v))) for v in box)
        colour = class_colour(int(category))
        cv2.rectangle(image, (x0, y0), (x1, y1), colour, max(1, round(2 * size)))
        text = names[int(category)] + ("" if scores is None else f" {scores[i]:.2f}")
        put_text(image, text, (x0, max(9, y0 - 2)), size, colour, outlined=True)
    return image


def draw_masks(image: np.ndarray, masks: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Colours masks and draws their outlines on a copy of an image (H, W, 3) BGR.

    Args:
        masks: (n, height, width) bool, of any size; they are scaled to the image.
    """
    image = image.copy()
    size = (image.shape[1], image.shape[0])
    for mask, category in zip(masks, classes, strict=True):
        scaled = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inside, colour = scaled > 0, class_colour(int(category))
        image[inside] = (0.55 * image[inside] + 0.45 * np.array(colour)).astype(np.uint8)
        outlines, _ = cv2.findContours(scaled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, outlines, -1, colour, 1)
    return image


def draw_tile(
    title: str, image: np.ndarray, draw: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Makes a square picture for a sheet: the image scaled, drawn on at that scale, with a title.

    Args:
        image: (H, W, 3) BGR.
        draw: draws on the scaled image, and returns it.
    """
    image = scaled_to(image, TILE_SIDE)
    below, right = TILE_SIDE - image.shape[0], TILE_SIDE - image.shape[1]
    return put_title(draw(image), title, below=below, right=right)


def scaled_to(image: np.ndarray, side: int) -> np.ndarray:
    """Scales an image (H, W, 3) so that its longer side is `side`."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def put_title(image: np.ndarray, title: str, *, below: int = 0, right: int = 0) -> np.ndarray:
    """Adds a line of text above an image, and black pixels below it and on its right."""
    image = cv2.copyMakeBorder(image, TITLE_HEIGHT, below, 0, right, cv2.BORDER_CONSTANT)
    return put_text(image, title, (4, TITLE_HEIGHT - 6), 0.45, (255, 255, 255))


def sheet(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lays tiles of one size side by side, row by row."""
    missing = -len(tiles) % columns
    cells = [*tiles, *[np.zeros_like(tiles[0])] * missing]
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack(rows)


def draw_curves(folder: Path, out: Path, metric: str) -> None:
    """Draws the total loss and a metric over iterations, from the metrics.json of a folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = read_metrics(folder)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    name = metric.partition("/")[2]
    for axis, key, title in ((left, "total_loss", "training loss"), (right, metric, name)):
        points = [(r["iteration"], r[key]) for r in records if key in r]
        if points:
            axis.plot(*zip(*points, strict=True), marker="." if axis is right else None)
        axis.set(title=title, xlabel="iteration")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)
