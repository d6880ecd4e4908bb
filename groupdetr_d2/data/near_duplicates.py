"""Images of one set that another one has, too, or has nearly: smaller, or compressed anew.

A difference hash (Neal Krawetz, "Kind of Like That", 2013) says of 8 x 8 places of a small grey
version whether it gets brighter to the right. Images whose hashes differ in few of the 64 bits are
compared by their small grey versions. The images of a set are compared with those of another
without looking at every pair: hashes that differ in fewer bits than they have parts share a part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 16  # of the small grey versions
BITS = 7  # of a hash that may differ
PARTS = BITS + 1  # of 8 bits each, one of which is the same
GREY = 3.0  # mean difference of small grey versions of one image, of 255
KEPT_SIDE = 64  # pixels at least of what a large image is reduced to first
TOGETHER = 1_000_000  # pairs of hashes that are compared at once
COMPARED = 50  # images with the same hash, such as blank ones, that others are compared with
ONES = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
    1, dtype=np.uint8
)  # bits of 16 that are set


class Thumbnail(NamedTuple):
    """The hash and the small grey version of an image."""

    bits: int  # 64
    grey: np.ndarray  # (SIDE, SIDE) uint8


@dataclass(frozen=True)
class Thumbnails:
    """The thumbnails of the images of a set that could be read."""

    names: Sequence[str]
    hashes: np.ndarray  # (N,) uint64
    greys: np.ndarray  # (N, SIDE * SIDE) uint8

    @classmethod
    def of(cls, names: Sequence[str], thumbnails: Sequence[Thumbnail | None]) -> "Thumbnails":
        """Collects thumbnails; None stands for an image that could not be read."""
        known = [
            (name, thumbnail)
            for name, thumbnail in zip(names, thumbnails, strict=True)
            if thumbnail
        ]
        hashes = np.array([thumbnail.bits for _, thumbnail in known], dtype=np.uint64)
        greys = np.array([thumbnail.grey for _, thumbnail in known], dtype=np.uint8)
        return cls([name for name, _ in known], hashes, greys.reshape(-1, SIDE * SIDE))


def thumbnail_of(image: Image.Image, turn: Image.Transpose | None = None) -> Thumbnail:
    """Computes the thumbnail of a loaded image.

    Args:
        turn: what turns it upright.
    """
    factor = min(image.size) // KEPT_SIDE
    if factor > 1 and image.mode in ("L", "RGB", "RGBA"):
        image = image.reduce(factor)
    small = image.convert("L")
    if turn is not None:
        small = small.transpose(turn)
    row = np.asarray(small.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(row[:, 1:] > row[:, :-1])
    grey = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8)
    return Thumbnail(int.from_bytes(bits.tobytes(), "big"), grey)


def near_duplicates(first: Thumbnails, second: Thumbnails) -> list[tuple[int, int]]:
    """Finds the images of the second set that look like one of the first.

    Returns:
        (place in the first set, place in the second), at most one pair for an image of the second:
        that with the most similar one.
    """
    ours, our_places = np.unique(first.hashes, return_inverse=True)
    theirs, their_places = np.unique(second.hashes, return_inverse=True)
    members = [_members(x, n) for x, n in ((our_places, len(ours)), (their_places, len(theirs)))]
    best: dict[int, tuple[float, int]] = {}
    for i, j in _near_hashes(ours, theirs):
        own, other = members[0][i][:COMPARED], members[1][j]
        greys = first.greys[own].astype(np.int16)
        for place in other.tolist():
            distances = np.abs(greys - second.greys[place]).mean(1)
            nearest = int(distances.argmin())
            if distances[nearest] <= GREY:
                found = (float(distances[nearest]), int(own[nearest]))
                best[place] = min(best.get(place, found), found)
    return [(a, b) for b, (_, a) in sorted(best.items())]


def _members(places: np.ndarray, number: int) -> list[np.ndarray]:
    """Lists the images that have each of `number` hashes."""
    order = np.argsort(places, kind="stable")
    return np.split(order, np.searchsorted(places[order], np.arange(1, number)))


def _near_hashes(ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, int]]:
    """Finds the pairs of different hashes (N,) and (M,) uint64 that differ in few bits."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    for part in range(PARTS):
        shift, mask = np.uint64(64 // PARTS * part), np.uint64(2 ** (64 // PARTS) - 1)
        for i, j in _pairs_of_equal((ours >> shift) & mask, (theirs >> shift) & mask):
            is_near = _bits_apart(ours[i], theirs[j]) <= BITS
            found.append(np.stack([i[is_near], j[is_near]], 1))
    pairs = np.unique(np.concatenate(found), axis=0).tolist()
    return [(i, j) for i, j in pairs]


def _pairs_of_equal(
    ours: np.ndarray, theirs: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields places of equal values in both arrays, some pairs at a time."""
    order = np.argsort(ours, kind="stable")
    starts, ends = (np.searchsorted(ours[order], theirs, side=x) for x in ("left", "right"))
    counts = ends - starts
    groups = np.cumsum(counts) // TOGETHER
    for group in np.unique(groups[counts > 0]):
        own = np.flatnonzero((groups == group) & (counts > 0))
        number = counts[own]
        within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        yield order[np.repeat(starts[own], number) + within], np.repeat(own, number)


def _bits_apart(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Counts the bits in which hashes (n,) uint64 differ."""
    apart = np.ascontiguousarray(hashes ^ others).view(np.uint16).reshape(-1, 4)
    return ONES[apart].sum(1)
