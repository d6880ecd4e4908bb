"""Image files that are not there, and the files that were probably meant."""

import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from .checks import DatasetError
from .coco_columns import CocoImages
from .coco_rules import plain

logger = logging.getLogger(__name__)


def check_files(name: str, images: CocoImages, *, may_lack: bool = False) -> None:
    """Checks that the image files of a data set are there.

    Args:
        may_lack: whether some may be missing, which is a warning; folders are listed then, which
            is faster with millions of files.

    Raises:
        DatasetError: naming the first that is missing, and the file that was probably meant.
    """
    missing = absent_files(images) if may_lack else missing_files(images)
    if may_lack and 0 < len(missing) < len(images):
        logger.warning(
            "data set %s: %d of %d image files are missing, %s for one; DATALOADER.ON_ERROR skip "
            "goes on without them, as far as DATALOADER.MAX_SKIPPED allows",
            name,
            len(missing),
            len(images),
            plain(missing[0]),
        )
    elif missing:
        raise DatasetError(
            f"data set {name}: {len(missing)} of {len(images)} image files are missing, the first "
            f"is {plain(missing[0])}{probably_meant(images.image_root, missing[0])}. Check the "
            "image folder (--train-images, --val-images, or $DETECTRON2_DATASETS for Detectron2's "
            "own sets)"
        )


def missing_files(images: CocoImages) -> list[str]:
    """The paths of image files that are not there."""
    names = (images.columns.file_names[i] for i in images.chosen)
    paths = (os.path.join(images.image_root, name) for name in names)
    return [path for path in paths if not os.path.isfile(path)]


def absent_files(images: CocoImages) -> list[str]:
    """The paths of image files that are not there, by lists of their folders."""
    folders = Folders()
    names = (images.columns.file_names[i] for i in images.chosen)
    paths = (os.path.join(images.image_root, name) for name in names)
    return [path for path in paths if not folders.has(path)]


class Folders:
    """The names in folders, each of which is listed once."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        """Whether the folder of a path has its name."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            is_there = os.path.isdir(folder)
            self._names[folder] = set(os.listdir(folder)) if is_there else set()
        return name in self._names[folder]


def probably_meant(image_root: str, path: str) -> str:
    """A hint at the file that a path may have meant; empty if none is found."""
    root = Path(image_root or ".")
    name = os.path.relpath(path, root) if not os.path.isabs(path) or image_root else path
    for candidate in _candidates(name):
        for found in _spellings(root, candidate):
            return f" (was {found} meant?)"
    return ""


def _candidates(name: str) -> Iterator[str]:
    """Yields what tools write in place of a path below the image folder."""
    slashes = name.replace("\\", "/")
    for text in (slashes, unquote(slashes), unquote(slashes).replace("\\", "/")):
        yield text
        yield text.rsplit("/", 1)[-1]


def _spellings(root: Path, name: str) -> Iterator[Path]:
    """Yields files that differ from a name in case or in Unicode's form alone."""
    folder = (root / name).parent
    try:
        if not folder.is_dir():
            return
        wanted = _form(Path(name).name)
        for entry in os.scandir(folder):
            if _form(entry.name) == wanted or Path(_form(entry.name)).stem == wanted:
                yield Path(entry.path)
    except (OSError, ValueError):
        return


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
