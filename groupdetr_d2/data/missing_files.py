"""Image files that are not there, and the files that were probably meant."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from .checks import DatasetError
from .coco_columns import CocoImages
from .coco_rules import plain


def check_files(name: str, images: CocoImages) -> None:
    """Checks that the image files of a data set are there.

    Raises:
        DatasetError: naming the first that is missing, and the file that was probably meant.
    """
    missing = missing_files(images)
    if missing:
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
