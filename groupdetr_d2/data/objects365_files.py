"""Reading and writing the files of Objects365, of which one has 27 million boxes.

A file is mapped into memory, and its boxes are made in pieces. What a training reads of the written
file is kept in coco_cache.py's form as well, so that it need not be parsed again.
"""

import logging
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import numpy as np
from tqdm import tqdm

from .checks import DatasetError
from .coco_cache import cache_path, state_of, store
from .coco_columns import CocoColumns, are_bad
from .coco_file import CACHED_SIZE

logger = logging.getLogger(__name__)
PIECE = 1 << 16  # boxes
ELSEWHERE, UNKNOWN = -1, -2  # places of images that are not in a written list, or in none


class Image(msgspec.Struct, gc=False):
    """An image of the list of images."""

    id: int
    file_name: str
    width: int
    height: int


class Category(msgspec.Struct, gc=False):
    """A class of objects."""

    id: int
    name: str


class Annotation(msgspec.Struct, gc=False):
    """A box x, y, width, height in pixels; `isfake` and `isreflected` are not read."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: Literal[0, 1]


class _Content(msgspec.Struct):
    images: list[Image]
    annotations: list[msgspec.Raw]
    categories: list[Category]


@dataclass(frozen=True)
class Source:
    """A file that was read, whose annotations are still text in the mapped file."""

    path: Path
    images: list[Image]
    annotations: list[msgspec.Raw]
    classes: list[Category]  # in the order of their ids

    @property
    def class_names(self) -> list[str]:
        """The names of classes in the order of their ids."""
        return [x.name for x in self.classes]

    @cached_property
    def image_ids(self) -> frozenset[int]:
        """The ids of all images of the file."""
        return frozenset(image.id for image in self.images)


@dataclass(frozen=True)
class Part:
    """Some images of a file, under the names that are to be written."""

    source: Source
    images: list[Image]


@dataclass
class Written:
    """The contents of a file that was written.

    Attributes:
        bad: boxes that were left out: not finite, without area or outside their image.
        unknown: boxes of images that no list has, which were left out.
        renumbered: images whose ids were taken.
        kept: the file for later runs; None for a small one.
    """

    path: Path
    images: int
    boxes: int = 0
    crowds: int = 0
    bad: int = 0
    unknown: int = 0
    renumbered: int = 0
    examples: list[str] = field(default_factory=list)
    kept: Path | None = None

    def __str__(self) -> str:
        lines = [f"{self.images} images, {self.boxes} boxes ({self.crowds} of crowds)"]
        example = f", {self.examples[0]} for one" if self.examples else ""
        if self.bad:
            text = "boxes were left out that have no area or lie outside their image"
            lines.append(f"  {self.bad} {text}{example}")
        if self.unknown:
            lines.append(f"  {self.unknown} boxes of images in no list were left out")
        if self.renumbered:
            lines.append(f"  {self.renumbered} images have new ids, since theirs were taken")
        if self.kept:
            lines.append(f"  annotations for later runs: {self.kept}")
        return "\n".join([*lines, f"  file: {self.path}"])


def read_source(path: Path, *, progress: bool = False) -> Source:
    """Reads a file of annotations, whose boxes are left as text.

    Raises:
        DatasetError: it cannot be read, or is none in COCO's format.
    """
    if progress:
        sys.stderr.write(f"reading {path}\n")
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = msgspec.json.decode(mapped, type=_Content)
    except (msgspec.MsgspecError, ValueError, OSError, RecursionError) as error:
        raise DatasetError(
            f"{path} is no annotation file of Objects365: {error}. Download it again"
        ) from error
    classes = sorted(content.categories, key=lambda x: x.id)
    return Source(path, content.images, content.annotations, classes)


def write_part_file(
    path: Path, parts: Sequence[Part], *, drops_bad: bool, progress: bool = False
) -> Written:
    """Writes parts of files as one; nothing is left of an attempt that is interrupted.

    Where there are several parts, boxes are numbered anew, and images of a later part whose ids
    are taken get new ones.

    Args:
        drops_bad: whether bad boxes are left out, see `coco_columns.are_bad`.

    Raises:
        DatasetError: an annotation cannot be read, or the file cannot be written.
    """
    images, written = [image for part in parts for image in part.images], Written(path, 0)
    written.images = len(images)
    classes = parts[0].source.classes
    lists = [_with_free_ids(parts, i, written) for i in range(len(parts))]
    pieces = _Pieces(classes, written, drops_bad=drops_bad, renumbers=len(parts) > 1)
    try:
        with _replaced(path) as file:
            file.write(b'{"images":' + msgspec.json.encode([x for y in lists for x in y]))
            file.write(b',"categories":' + msgspec.json.encode(classes) + b',"annotations":[')
            total = sum(len(part.source.annotations) for part in parts)
            with tqdm(total=total, desc=path.name, disable=not progress, unit=" boxes") as bar:
                start = 0
                for part, own in zip(parts, lists, strict=True):
                    for size in pieces.write(file, part, own, start):
                        bar.update(size)
                    start += len(own)
            file.write(b"]}")
    except OSError as error:
        raise DatasetError(f"{path} could not be written ({error}). Is the disk full?") from error
    _keep(pieces.columns([x for y in lists for x in y]), written)
    return written


def _with_free_ids(parts: Sequence[Part], index: int, written: Written) -> list[Image]:
    """Returns the images of a part, with ids that no image of an earlier part has."""
    part = parts[index]
    taken = set().union(*(x.source.image_ids for x in parts[:index]))
    if taken.isdisjoint(image.id for image in part.images):
        return part.images
    first = max(taken | part.source.image_ids) + 1
    written.renumbered += len(part.images)
    return [
        Image(first + i, image.file_name, image.width, image.height)
        for i, image in enumerate(part.images)
    ]


class _Pieces:
    """Boxes on their way from files to a file, and what is kept of them as arrays.

    Args:
        renumbers: whether boxes are numbered from 1.
    """

    def __init__(
        self, classes: Sequence[Category], written: Written, *, drops_bad: bool, renumbers: bool
    ):
        self.classes, self.written = classes, written
        self.drops_bad, self.renumbers = drops_bad, renumbers
        self.class_places = {x.id: i for i, x in enumerate(classes)}
        self.decoder = msgspec.json.Decoder(Annotation)
        self.arrays: list[tuple[np.ndarray, ...]] = []

    def write(self, file: BinaryIO, part: Part, images: list[Image], start: int) -> Iterator[int]:
        """Writes the boxes of a part in pieces; yields how many annotations each was made of.

        Args:
            images: of the part, with the ids that are written.
            start: the place of the first one in the whole list.
        """
        places = dict.fromkeys(part.source.image_ids, ELSEWHERE)
        places |= {image.id: i for i, image in enumerate(part.images)}
        sizes = np.array([(x.width, x.height) for x in images], dtype=np.int64).reshape(-1, 2)
        texts = part.source.annotations
        for first in range(0, len(texts), PIECE):
            piece = texts[first : first + PIECE]
            boxes = [self._decode(text, part.source.path) for text in piece]
            kept, chosen = self._kept(boxes, places, sizes, images)
            number = self.written.boxes
            for i, (box, place) in enumerate(zip(kept, chosen.tolist(), strict=True)):
                box.image_id = images[place].id
                box.id = number + i + 1 if self.renumbers else box.id
            if kept:
                file.write((b"," if number else b"") + msgspec.json.encode(kept)[1:-1])
                self._take_in(kept, chosen + start)
            yield len(piece)

    def _decode(self, text: msgspec.Raw, path: Path) -> Annotation:
        try:
            box = self.decoder.decode(text)
        except msgspec.MsgspecError as error:
            shown = bytes(text)[:200].decode("utf-8", "replace")
            raise DatasetError(f"{path}: the annotation {shown}: {error}") from error
        if box.category_id not in self.class_places:
            raise DatasetError(
                f"{path}: annotation {box.id} has the category {box.category_id}, which is none of "
                "the file's"
            )
        return box

    def _kept(
        self, boxes: list[Annotation], places: dict, sizes: np.ndarray, images: list[Image]
    ) -> tuple[list[Annotation], np.ndarray]:
        """Returns the boxes that are written, and the places of their images in the part."""
        place = np.array([places.get(x.image_id, UNKNOWN) for x in boxes], dtype=np.int64)
        self.written.unknown += int((place == UNKNOWN).sum())
        is_kept = place >= 0
        if self.drops_bad and len(sizes):
            corners = np.array([x.bbox for x in boxes], dtype=np.float64).reshape(-1, 4)
            bad = is_kept & are_bad(corners, sizes[np.maximum(place, 0)])
            self.written.bad += int(bad.sum())
            for i in np.flatnonzero(bad)[:1]:
                box = [round(x, 3) for x in boxes[i].bbox]
                self.written.examples.append(f"{images[place[i]].file_name} {box}")
            is_kept &= ~bad
        return [x for x, is_one in zip(boxes, is_kept.tolist(), strict=True) if is_one], place[
            is_kept
        ]

    def _take_in(self, boxes: list[Annotation], image_of: np.ndarray) -> None:
        crowd = np.array([x.iscrowd for x in boxes], dtype=bool)
        self.written.boxes += len(boxes)
        self.written.crowds += int(crowd.sum())
        self.arrays.append(
            (
                np.array([x.id for x in boxes], dtype=np.int64),
                image_of,
                np.array([self.class_places[x.category_id] for x in boxes], dtype=np.int64),
                np.array([x.bbox for x in boxes], dtype=np.float64).reshape(-1, 4),
                np.array([x.area for x in boxes], dtype=np.float64),
                crowd,
            )
        )

    def columns(self, images: Sequence[Image]) -> CocoColumns:
        """Makes the columns that reading the written file would make."""
        empty = (*np.zeros((3, 0), int), np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool))
        ids, place, classes, boxes, areas, crowd = map(
            np.concatenate, zip(empty, *self.arrays, strict=True)
        )
        self.arrays.clear()
        order_of_images = np.argsort([x.id for x in images], kind="stable")
        rank = np.empty_like(order_of_images)
        rank[order_of_images] = np.arange(len(images))
        image_of = rank[place]
        order = np.argsort(image_of, kind="stable")
        ordered = [images[i] for i in order_of_images]
        return CocoColumns(
            image_ids=[x.id for x in ordered],
            file_names=[x.file_name for x in ordered],
            sizes=np.array([(x.width, x.height) for x in ordered], dtype=np.int64).reshape(-1, 2),
            category_ids=[x.id for x in self.classes],
            class_names=[x.name for x in self.classes],
            annotation_ids=ids[order],
            image_of=image_of[order],
            class_of=classes[order],
            boxes=boxes[order],
            areas=areas[order],
            crowd=crowd[order],
        )


def _keep(columns: CocoColumns, written: Written) -> None:
    """Keeps the columns of a large file for later runs, if they can be written."""
    if written.path.stat().st_size < CACHED_SIZE:
        return
    path = cache_path(str(written.path))
    try:
        store(path, state_of(str(written.path)), columns)
    except OSError as error:
        logger.warning("%s cannot be kept (%s): the first run reads the file", path, error)
    else:
        written.kept = path


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """Opens a file under another name, which takes the place of `path` once it is complete."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
