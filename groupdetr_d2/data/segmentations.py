"""The masks of an annotation file: kept as its text, decoded where they are needed.

A mask is a list of polygons (x0, y0, x1, y1, ... in pixels), which are joined, or a run-length code
("RLE") of the image's size, whose counts are numbers or COCO's text.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
from pycocotools import mask as coco_mask

FINER = 4  # steps of a pixel in which outlines are traced
SURE_AREA = 8.0  # pixels; a polygon of this area draws some
CHUNK = 20_000  # masks that are checked at a time
PROBLEMS = (
    "",
    "no mask ('segmentation' is missing or empty)",
    "a polygon of fewer than three points",
    "a polygon with an odd number of coordinates",
    "a mask that is neither polygons (lists of numbers) nor RLE (size and counts)",
    "an RLE of another size than its image",
    "an RLE that cannot be decoded",
    "a mask without area, or outside its image",
    "a polygon that reaches ten times as far as its image",
)
MISSING, FEW, ODD, STRANGE, OTHER_SIZE, UNREADABLE, EMPTY, FAR = range(1, len(PROBLEMS))
FARTHEST = 10.0  # relative to the image; drawing what lies farther out would take for ever
Mask = list[list[float]] | dict[str, Any]


@dataclass(frozen=True)
class Segmentations:
    """The masks of M annotations.

    Attributes:
        text: (bytes,) uint8, their JSON one after another.
        starts, ends: (M,) int64, where each stands in the text.
        problems: (M,) uint8, index into PROBLEMS; 0 for a good mask.
        extents: (M, 4) float64, x0, y0, x1, y1 of each good mask.
    """

    text: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    problems: np.ndarray
    extents: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Mask:
        """Decodes a mask: polygons, or an RLE with "size" and "counts"."""
        return msgspec.json.decode(self.text[self.starts[index] : self.ends[index]].tobytes())

    def select(self, chosen: np.ndarray) -> "Segmentations":
        """Returns the masks of some annotations, by index or (M,) bool."""
        names = ("starts", "ends", "problems", "extents")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


def segmentations_of(texts: Sequence[bytes], sizes: np.ndarray) -> Segmentations:
    """Keeps the JSON texts of masks, and finds what is wrong with each.

    Args:
        sizes: (M, 2) width and height of each mask's image.
    """
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    starts = ends - np.array([len(text) for text in texts], dtype=np.int64)
    problems = np.zeros(len(texts), dtype=np.uint8)
    extents = np.zeros((len(texts), 4))
    for first in range(0, len(texts), CHUNK):
        part = slice(first, first + CHUNK)
        problems[part], extents[part] = _examined(texts[part], sizes[part])
    text = np.frombuffer(b"".join(texts), dtype=np.uint8)
    return Segmentations(text, starts, ends, problems, extents)


def json_texts(masks: Iterable[Any]) -> list[bytes]:
    """Writes masks of any form as JSON."""
    return [json.dumps(as_plain(x), default=str).encode("utf-8", "replace") for x in masks]


def as_plain(mask: Any) -> Any:
    """Makes a mask of JSON's own types; bitmaps and counts as bytes become COCO's RLE."""
    if isinstance(mask, torch.Tensor):
        mask = mask.numpy()
    if isinstance(mask, np.ndarray) and mask.ndim == 2:
        return encode(mask[None] > 0)[0]
    if isinstance(mask, dict) and isinstance(mask.get("counts"), bytes):
        return {**mask, "counts": mask["counts"].decode("latin1")}
    if isinstance(mask, dict):
        return {str(k): as_plain(v) for k, v in mask.items()}
    if isinstance(mask, (list, tuple)):
        return [as_plain(x) for x in mask]
    return mask.tolist() if isinstance(mask, (np.ndarray, np.generic)) else mask


_POLYGONS = msgspec.json.Decoder(list[list[float]])


def _examined(texts: Sequence[bytes], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds problems (M,) and extents (M, 4) of some masks."""
    problems, extents = np.zeros(len(texts), dtype=np.uint8), np.zeros((len(texts), 4))
    points: list[float] = []
    lengths, owners = [], []  # of polygons
    for i, text in enumerate(texts):
        try:
            polygons = _POLYGONS.decode(text)
        except msgspec.MsgspecError:
            problems[i], extents[i] = _examine_rle(text, sizes[i])
            continue
        problems[i] = _problem_of(polygons)
        if not problems[i]:
            for polygon in polygons:
                points += polygon
                lengths.append(len(polygon) // 2)
                owners.append(i)
    if owners:
        own = np.array(owners)
        boxes, areas = measure(np.array(points).reshape(-1, 2), np.array(lengths))
        joined, first = np.unique(own, return_index=True)
        lower = np.minimum.reduceat(boxes[:, :2], first)
        upper = np.maximum.reduceat(boxes[:, 2:], first)
        extents[joined] = np.concatenate([lower, upper], 1)
        own_sizes = sizes[joined]
        is_near = ((lower >= -FARTHEST * own_sizes) & (upper <= FARTHEST * own_sizes)).all(1)
        problems[joined[~is_near]] = FAR
        # those that may draw no pixel are drawn; a self-crossing polygon can have the area 0
        is_inside = ((lower >= 0) & (upper <= own_sizes)).all(1)
        is_sure = is_inside & (np.add.reduceat(areas, first) >= SURE_AREA)
        for i in joined[is_near & ~is_sure]:
            code = compressed(_POLYGONS.decode(texts[i]), (int(sizes[i, 1]), int(sizes[i, 0])))
            problems[i] = 0 if coco_mask.area(code) else EMPTY
    return problems, extents


def _problem_of(polygons: list[list[float]]) -> int:
    if not polygons:
        return MISSING
    if any(len(polygon) % 2 for polygon in polygons):
        return ODD
    return FEW if any(len(polygon) < 6 for polygon in polygons) else 0


def measure(points: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes boxes (n, 4) and areas (n,) of polygons whose points (P, 2) follow one another."""
    first = np.cumsum(lengths) - lengths
    lower, upper = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
    following = np.arange(1, len(points) + 1)
    following[first + lengths - 1] = first  # the last point of a polygon is followed by its first
    with np.errstate(all="ignore"):  # numbers can be of any size
        # far from the origin, rounding has an area
        x, y = (points - np.repeat(lower, lengths, 0)).T
        cross = x * y[following] - x[following] * y
    areas = np.abs(np.add.reduceat(cross, first)) / 2
    return np.concatenate([lower, upper], 1), areas


def _examine_rle(text: bytes, size: np.ndarray) -> tuple[int, np.ndarray | list[float]]:
    """Finds the problem and the extent of a mask that is no list of polygons."""
    nothing = [0.0] * 4
    mask = _loaded(text)
    if mask is None or mask == {} or mask == "":
        return MISSING, nothing
    if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        return STRANGE, nothing
    width, height = size.tolist()
    if mask["size"] != [height, width]:
        return OTHER_SIZE, nothing
    try:
        code = compressed(mask, (height, width))
        if not is_whole(code):
            return UNREADABLE, nothing
        x, y, w, h = coco_mask.toBbox(code).tolist()
        area = int(coco_mask.area(code))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError):
        return UNREADABLE, nothing
    return (0 if area > 0 else EMPTY), [x, y, x + w, y + h]


def _loaded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return "?"


def compressed(mask: Mask, size: tuple[int, int]) -> dict:
    """Makes COCO's compressed RLE of a mask on an image of a size (height, width).

    Raises:
        ValueError: its runs are no numbers, or no runs of such an image.
    """
    if isinstance(mask, list):
        return coco_mask.merge(coco_mask.frPyObjects(mask, *size))
    counts = mask["counts"]
    if isinstance(counts, str):
        return {"size": list(size), "counts": counts.encode("latin1")}
    if not all(isinstance(x, int) and x >= 0 for x in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError("the runs do not add up to the pixels of the image")
    return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)


def is_whole(code: dict) -> bool:
    """Whether the runs of a compressed RLE add up to its image; pycocotools would not notice."""
    height, width = code["size"]
    return sum(runs_of(code["counts"])) == height * width


def runs_of(counts: bytes) -> Iterator[int]:
    """Yields the lengths of the runs of COCO's compressed text.

    Six bits a character, the fifth of them marking that more follow; from the third run on it is
    the difference from the last but one.

    Raises:
        ValueError: it ends within a number, or a run is negative.
    """
    before = [0, 0]
    number, place, is_open, index = 0, 0, False, 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError("a character that no run has")
        number |= (bits & 31) << place
        place += 5
        is_open = bool(bits & 32)
        if is_open:
            continue
        if bits & 16:
            number -= 1 << place
        run = number + (before[0] if index > 2 else 0)
        if run < 0:
            raise ValueError("a negative run")
        yield run
        before = [before[1], run]
        number, place, index = 0, 0, index + 1
    if is_open:
        raise ValueError("the last run is cut off")


def bitmap(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    """Draws a mask on an image of a size (height, width), (height, width) bool."""
    return coco_mask.decode(compressed(mask, size)).astype(bool)


def encode(masks: np.ndarray) -> list[dict]:
    """Makes COCO's RLE, with text as counts, of masks (n, height, width) bool."""
    columns = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))
    codes = coco_mask.encode(columns)
    return [{"size": list(x["size"]), "counts": x["counts"].decode("latin1")} for x in codes]


def polygons_of(code: dict) -> list[list[float]]:
    """Traces the outlines of an RLE along the borders of its pixels; holes are filled.

    Returns:
        polygons x0, y0, x1, y1, ... in pixels, drawn by pycocotools as the mask that they are of.
    """
    x, y, width, height = map(int, coco_mask.toBbox(code))
    mask = coco_mask.decode(code)[y : y + height, x : x + width]
    enlarged = np.kron(mask, np.ones((FINER, FINER), dtype=np.uint8))
    outlines, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = [((outline[:, 0] + 0.5) / FINER + [x, y]).round(3) for outline in outlines]
    return [x.ravel().tolist() for x in points if len(x) >= 3]
