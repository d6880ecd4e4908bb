"""The choice of a few images that show all that is in a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NAMED = 3  # classes that a reason names


@dataclass(frozen=True)
class Objects:
    """M objects on the images of a set, as far as a choice of images depends on them."""

    image_of: np.ndarray  # (M,) int64, places of images
    class_of: np.ndarray  # (M,) int64
    sides: np.ndarray  # (M,) sizes that can be compared
    num_images: int
    class_names: Sequence[str]

    @property
    def counts(self) -> np.ndarray:
        """The objects of each image, (N,)."""
        return np.bincount(self.image_of, minlength=self.num_images)

    def classes_on(self, images: Sequence[int]) -> int:
        """Counts the classes that some images show."""
        return len(np.unique(self.class_of[np.isin(self.image_of, images)]))


def varied_images(objects: Objects, most: int) -> list[tuple[int, str]]:
    """Chooses images that together show what there is, each with the reason.

    They are the fullest one, those with the smallest and the largest object, one without objects,
    and then images with classes that are not on those before, the most such classes first.

    Args:
        most: images that are chosen at most.
    """
    chosen: dict[int, str] = {}
    for image, reason in _unusual(objects):
        if len(chosen) < most:
            chosen.setdefault(image, reason)
    for image, reason in _with_new_classes(objects, list(chosen)):
        if len(chosen) == most:
            break
        chosen[image] = reason
    return list(chosen.items())


def _unusual(objects: Objects) -> Iterator[tuple[int, str]]:
    counts = objects.counts
    if len(objects.image_of):
        fullest = int(counts.argmax())
        yield fullest, f"most objects, {counts[fullest]}"
        yield int(objects.image_of[objects.sides.argmin()]), "smallest object"
        yield int(objects.image_of[objects.sides.argmax()]), "largest object"
    if objects.num_images and not counts.min():
        yield int(counts.argmin()), "no objects"


def _with_new_classes(objects: Objects, shown: list[int]) -> Iterator[tuple[int, str]]:
    """Yields images until every class has been shown; of equally good ones the emptiest."""
    counts, names = objects.counts, objects.class_names
    pairs = np.unique(np.stack([objects.image_of, objects.class_of], 1), axis=0)
    images, classes = pairs.T
    is_new = np.ones(len(names), dtype=bool)
    is_new[classes[np.isin(images, shown)]] = False
    while is_new[classes].any():
        gain = np.bincount(images[is_new[classes]], minlength=objects.num_images)
        image = int((gain - counts / (counts.max() + 1)).argmax())
        own = [int(c) for c in classes[images == image] if is_new[c]]
        is_new[own] = False
        more = f" and {len(own) - NAMED} more" if len(own) > NAMED else ""
        yield image, ", ".join(names[c] for c in own[:NAMED]) + more


def others(objects: Objects, chosen: Sequence[int]) -> list[tuple[int, str]]:
    """Lists all other images in a random order, which is the same every time."""
    rest = np.setdiff1d(np.arange(objects.num_images), chosen)
    return [(int(i), "at random") for i in np.random.default_rng(0).permutation(rest)]
