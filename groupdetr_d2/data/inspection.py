"""Inspection of a data set before training: everything that is wrong with it, and its contents.

Training applies the same rules (coco_rules.py, coco_columns.py) and stops at the first error; here
the images are opened too, and all findings are listed.
"""

import errno
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

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
from .image_file import ROTATED, orientation_of
from .missing_files import probably_meant


@dataclass
class Inspection:
    """The findings on a data set, and its numbers."""

    findings: list[Finding] = field(default_factory=list)
    numbers: dict = field(default_factory=dict)  # plain values, see `numbers_of`
    columns: CocoColumns | None = None  # None if the file has errors

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
    inspection.findings.sort(key=lambda finding: not finding.is_error)
    return inspection


def _check_images(images: CocoImages, decode: bool, inspection: Inspection) -> None:
    names, root = images.columns.file_names, Path(images.image_root)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: read_size(root / name, decode), names))
    missing: list[str] = []
    unreadable: list[str] = []
    other: list[str] = []
    for name, (size, problem), wanted in zip(
        map(plain, names), found, images.columns.sizes.tolist(), strict=True
    ):
        if problem == "missing":
            hint = probably_meant(str(root), str(root / name)) if len(missing) < SHOWN else ""
            missing.append(name + hint)
        elif problem:
            unreadable.append(f"{name} ({problem})")
        elif size != tuple(wanted):
            other.append(f"{name} is {size[0]} x {size[1]}, not {wanted[0]} x {wanted[1]}")
    inspection.add(True, f"images missing in {root}", missing)
    inspection.add(True, "images that cannot be read", unreadable)
    inspection.add(True, "images of another size than the json says (width x height)", other)


def read_size(path: Path, decode: bool) -> tuple[tuple[int, int] | None, str]:
    """Reads width and height, turned by EXIF as Detectron2 does, and what is wrong, if so."""
    try:
        if not path.is_file():
            return None, "missing"
        with Image.open(path) as image:
            size = image.size
            if decode:
                image.load()
            has_exif = decode or image.format != "PNG"  # looking for it decodes a PNG
            rotated = has_exif and orientation_of(image) in ROTATED
        return (size[::-1] if rotated else size), ""
    except OSError as error:
        missing = error.errno in (errno.ENAMETOOLONG, errno.ENOENT)
        return None, "missing" if missing else f"{type(error).__name__}: {error}"
    except Exception as error:  # an image library can raise anything
        return None, f"{type(error).__name__}: {error}"
