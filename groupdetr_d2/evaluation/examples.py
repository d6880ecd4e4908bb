"""Pictures of an evaluation: the worst, some random and the best images, truth beside findings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.image_file import ImageReadError
from .detection_curves import ImageResult
from .drawing import put_title
from .presentation import Presentation

SHOWN = 6  # images of each kind
SMALLEST_SIDE, LARGEST_SIDE = 320, 640  # pixels of an image in a pair
GAP = 4
QUALITY = 85  # of JPEG


@dataclass(frozen=True)
class Outcome:
    """The outcome on one image at the best threshold."""

    right: int
    missed: int
    extra: int  # detections of nothing
    wrong: int  # found as another class

    @classmethod
    def of(cls, pairs: np.ndarray) -> "Outcome":
        """Counts pairs (P, 2) of true and found class, see `pairs_of`."""
        true, found = pairs.T
        is_missed, is_extra = found < 0, true < 0
        right = int((true == found).sum())
        missed, extra = int(is_missed.sum()), int(is_extra.sum())
        return cls(right, missed, extra, len(pairs) - right - missed - extra)

    @property
    def mistakes(self) -> int:
        """The objects missed, detections of nothing and wrong classes together."""
        return self.missed + self.extra + self.wrong

    @property
    def f1(self) -> float:
        """The F1 of the image; 1 where there is nothing to find and nothing was found."""
        errors = self.missed + self.extra + 2 * self.wrong
        return 2 * self.right / (2 * self.right + errors) if self.right + errors else 1.0

    def __str__(self) -> str:
        parts = (f"{number} {what}" for what, number in vars(self).items() if number)
        return ", ".join(parts) or "nothing there, nothing found"


def chosen_examples(outcomes: Sequence[Outcome], number: int = SHOWN) -> dict[str, list[int]]:
    """Chooses the places of the worst images, of random ones, and of good ones, all different.

    Good images have right detections and the highest F1, and of the same F1 more objects. The
    random ones are the same in every evaluation of a set.
    """
    number = min(number, max(1, len(outcomes) // 3))
    everything = range(len(outcomes))
    by_mistakes = sorted(everything, key=lambda i: (-outcomes[i].mistakes, outcomes[i].f1, i))
    worst = [i for i in by_mistakes[:number] if outcomes[i].mistakes]
    by_f1 = sorted(everything, key=lambda i: (-outcomes[i].f1, -outcomes[i].right, i))
    good = [i for i in by_f1 if outcomes[i].right and i not in worst][:number]
    rest = np.setdiff1d(np.arange(len(outcomes)), [*worst, *good])
    random = np.random.default_rng(0).permutation(rest)[:number]
    return {"Worst": worst, "Random": sorted(random.tolist()), "Good": good}


def draw_pair(
    image: ImageResult, names: Sequence[str], threshold: float, shown: Presentation
) -> np.ndarray | None:
    """Draws the truth and what was found; None if the image cannot be read.

    They stand side by side, or one below the other where the presentation has one column.
    """
    assert image.truth and image.found and image.picture
    found = image.found()[image.scores >= threshold]
    titles = {"truth": image.truth(), f"found, scores from {threshold:.2f}": found}
    try:
        picture = shown.fit(image.picture(), _side_of(image, shown))
        parts = [put_title(shown.draw(picture, own, names), title) for title, own in titles.items()]
    except ImageReadError:
        return None
    axis = 0 if shown.columns == 1 else 1
    shape = [*parts[0].shape]
    shape[axis] = GAP
    return np.concatenate([parts[0], np.full(shape, 255, dtype=np.uint8), parts[1]], axis)


def _side_of(image: ImageResult, shown: Presentation) -> int:
    """Chooses the longer side of a picture: its own, within bounds."""
    if shown.columns == 1:
        return shown.tile_side
    assert image.truth
    return int(np.clip(max(image.truth().image_size), SMALLEST_SIDE, LARGEST_SIDE))


def example_pictures(
    images: Sequence[ImageResult],
    outcomes: Sequence[Outcome],
    names: Sequence[str],
    threshold: float,
    shown: Presentation,
) -> dict[str, dict[str, bytes]]:
    """Draws the examples of each kind as JPEG, by their captions."""
    kinds: dict[str, dict[str, bytes]] = {}
    for kind, places in chosen_examples(outcomes).items():
        own = kinds[kind] = {}
        for i in places:
            drawn = draw_pair(images[i], names, threshold, shown)
            if drawn is not None:
                caption = f"{Path(images[i].name).name}: {outcomes[i]}"
                own[caption] = _jpeg(drawn)
    return kinds


def _jpeg(drawn: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
