"""The colours of classes: far from one another, and farthest for classes with adjacent numbers.

Distances are those of OKLab (Björn Ottosson, "A perceptual color space for image processing",
2020), in which equal distances look about equally large.
"""

import functools

import numpy as np

Colour = tuple[int, int, int]  # BGR
NUMBER = 256  # of different colours; classes beyond begin anew
STEPS = 16  # of each channel among the candidates
LIGHTNESS = (0.47, 0.9)  # lowest and highest of OKLab: seen on dark and on light photographs
LOWEST_CHROMA = 0.055  # greys are left to the truth and to photographs
NEIGHBOURS, FARTHER = 2, 1.6  # the last classes, from which the next is this much farther
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue


def class_colour(index: int) -> Colour:
    """Picks the BGR colour of a class; it depends on the number of the class alone."""
    return _palette()[index % NUMBER]


def ink_on(colour: Colour) -> Colour:
    """Chooses black or white letters, whichever contrast more with a BGR background.

    The contrast is WCAG's, and at least 4.5 on any background.
    """
    return BLACK if contrast(colour, BLACK) >= contrast(colour, WHITE) else WHITE


def contrast(colour: Colour, other: Colour) -> float:
    """Computes WCAG's contrast of two BGR colours, 1 to 21."""
    values = [float(_linear(np.array(x[::-1]) / 255) @ LUMINANCE) for x in (colour, other)]
    return (max(values) + 0.05) / (min(values) + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Computes OKLab (n, 3) of colours (n, 3) in [0, 1]."""
    return np.cbrt(_linear(rgb) @ TO_CONES.T) @ TO_LAB.T


def _linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@functools.cache
def _palette() -> list[Colour]:
    """Chooses colours one by one, each as far as possible from all before it."""
    rgb = np.stack(np.meshgrid(*[np.linspace(0, 1, STEPS)] * 3, indexing="ij"), -1).reshape(-1, 3)
    places = oklab(rgb)
    is_seen = (LIGHTNESS[0] <= places[:, 0]) & (places[:, 0] <= LIGHTNESS[1])
    is_seen &= np.hypot(places[:, 1], places[:, 2]) >= LOWEST_CHROMA
    rgb, places = rgb[is_seen], places[is_seen]
    chosen = [int(np.linalg.norm(places - oklab(np.array([[1.0, 0.2, 0.2]])), axis=1).argmin())]
    distances = [np.linalg.norm(places - places[chosen[0]], axis=1)]
    nearest = distances[0].copy()
    while len(chosen) < NUMBER:
        recent = np.min(distances[-NEIGHBOURS:], 0) / FARTHER
        # rounded, so that the last digits of another machine choose nothing else
        chosen.append(int(np.minimum(nearest, recent).round(6).argmax()))
        distances.append(np.linalg.norm(places - places[chosen[-1]], axis=1))
        nearest = np.minimum(nearest, distances[-1])
    return [_bgr(rgb[i]) for i in chosen]


def _bgr(rgb: np.ndarray) -> Colour:
    red, green, blue = (int(round(255 * float(x))) for x in rgb)
    return blue, green, red
