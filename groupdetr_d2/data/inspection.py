"""Inspection of a data set before training: everything that is wrong with it, and its contents.

Training applies the same rules (coco_rules.py, coco_columns.py) and stops at the first error; here
the images are opened too, and all findings are listed.
"""

import errno
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .coco_columns import (
    CocoColumns,
    CocoImages,
    find_in_columns,
    find_more_objects_than,
    numbers_of,
)
from .coco_file import examine
from .coco_rules import SHOWN, Finding, plain
from .image_file import ROTATED, TURNS, orientation_of
from .label_statistics import label_rows
from .missing_files import probably_meant
from .near_duplicates import Thumbnail, Thumbnails, near_duplicates, thumbnail_of


@dataclass
class Inspection:
    """The findings on a data set, and its numbers."""

    findings: list[Finding] = field(default_factory=list)
    numbers: dict = field(default_factory=dict)  # plain values, see `numbers_of`
    columns: CocoColumns | None = None  # None if the file has errors
    labels: list[dict] = field(default_factory=list)  # statistics of each class, then of all
    thumbnails: Thumbnails | None = None  # of the images that were read to their ends

    @property
    def has_errors(self) -> bool:
        """Whether training on the data set would stop or go wrong."""
        return any(finding.is_error for finding in self.findings)

    def add(self, is_error: bool, text: str, examples: Iterable) -> None:
        """Records a finding, if there are examples of it."""
        examples = [str(x) for x in examples]
        if examples:
            self.findings.append(Finding(is_error, text, examples))


def inspect_coco(
    json_file: str,
    image_root: str,
    *,
    num_queries: int = 300,
    decode: bool = True,
    with_masks: bool = False,
) -> Inspection:
    """Checks annotations in COCO's format, and their images.

    Args:
        num_queries: of a group of the model that is to be trained.
        decode: whether every image is read to its end; else its header alone.
        with_masks: whether a model of masks is to be trained.

    Raises:
        DatasetError: the json cannot be read at all.
    """
    columns, findings = examine(json_file, with_masks=with_masks)
    inspection = Inspection(findings, columns=columns)
    if columns is not None:
        inspection.findings += find_in_columns(columns)
        inspection.findings += find_more_objects_than(columns, num_queries)
        _check_images(CocoImages(columns, image_root), decode, inspection)
        inspection.numbers = numbers_of(columns)
        inspection.labels = label_rows(columns)
    inspection.findings.sort(key=lambda finding: not finding.is_error)
    return inspection


def _check_images(images: CocoImages, decode: bool, inspection: Inspection) -> None:
    names, root = images.columns.file_names, Path(images.image_root)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: read_image(root / name, decode), names))
    inspection.thumbnails = Thumbnails.of(
        list(map(plain, names)), [image.thumbnail for image in found]
    )
    missing: list[str] = []
    unreadable: list[str] = []
    other: list[str] = []
    for name, image, wanted in zip(
        map(plain, names), found, images.columns.sizes.tolist(), strict=True
    ):
        size, problem = image.size, image.problem
        if problem == "missing":
            hint = probably_meant(str(root), str(root / name)) if len(missing) < SHOWN else ""
            missing.append(name + hint)
        elif size is None:
            unreadable.append(f"{name} ({problem})")
        elif size != tuple(wanted):
            other.append(f"{name} is {size[0]} x {size[1]}, not {wanted[0]} x {wanted[1]}")
    inspection.add(True, f"images missing in {root}", missing)
    inspection.add(True, "images that cannot be read", unreadable)
    inspection.add(True, "images of another size than the json says (width x height)", other)


def compare_sets(first: Inspection, second: Inspection, title: str) -> None:
    """Adds to the second set's findings the images that the first has, too, or nearly.

    Args:
        title: of the first set.
    """
    if first.thumbnails is None or second.thumbnails is None:
        return
    pairs = near_duplicates(first.thumbnails, second.thumbnails)
    names = [f"{second.thumbnails.names[j]} is like {first.thumbnails.names[i]}" for i, j in pairs]
    text = f"images that are nearly the same as images of {title}, which makes AP too high"
    second.add(False, text, names)


class ReadImage(NamedTuple):
    """The content of an image file, as far as an inspection needs it."""

    size: tuple[int, int] | None  # width and height; None if it cannot be read
    problem: str = ""
    thumbnail: Thumbnail | None = None  # of one that was read to its end


def read_size(path: Path, decode: bool) -> tuple[tuple[int, int] | None, str]:
    """Reads width and height, turned by EXIF as Detectron2 does, and what is wrong, if so."""
    found = read_image(path, decode)
    return found.size, found.problem


def read_image(path: Path, decode: bool) -> ReadImage:
    """Reads width and height, turned by EXIF as Detectron2 does, or what is wrong.

    Args:
        decode: whether the image is read to its end, which gives its thumbnail.
    """
    try:
        if not path.is_file():
            return ReadImage(None, "missing")
        with Image.open(path) as image:
            size = image.size
            if decode:
                image.load()
            has_exif = decode or image.format != "PNG"  # looking for it decodes a PNG
            orientation = orientation_of(image) if has_exif else 0
            thumbnail = thumbnail_of(image, TURNS.get(orientation)) if decode else None
        return ReadImage(size[::-1] if orientation in ROTATED else size, thumbnail=thumbnail)
    except OSError as error:
        missing = error.errno in (errno.ENAMETOOLONG, errno.ENOENT)
        return ReadImage(None, "missing" if missing else f"{type(error).__name__}: {error}")
    except Exception as error:  # an image library can raise anything
        return ReadImage(None, f"{type(error).__name__}: {error}")
