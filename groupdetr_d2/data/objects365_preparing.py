"""Preparing Objects365: one file to train on and one to validate with, of the two that are given.

The first 5,000 entries of the validation file's list of images stay validation, and the others join
training, as in Group DETR's Appendix B. Pictures stay where they are.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .checks import DatasetError
from .coco_rules import plain, repeated_values
from .missing_files import Folders
from .objects365 import FILES, TRAIN, VAL, is_first_edition, is_objects365
from .objects365_files import Image, Part, Source, Written, read_source, write_part_file

HELD_OUT = 5000
EXPECTED = {"train": 1_742_289, "val": 80_000}  # images of the edition of 2020
# in the files of annotations, and in none of the archives
NEVER_THERE = frozenset(
    (
        "patch16/objects365_v2_00908726.jpg",
        "patch6/objects365_v1_00320532.jpg",
        "patch6/objects365_v1_00320534.jpg",
    )
)
SHOWN = 10  # folders of a message


@dataclass
class Found:
    """The images of one of the two given files.

    Attributes:
        known: left out, since nobody has them.
        missing: those that are not there, as paths below the root, by folder.
        sizes: the number of images by folder.
    """

    split: str
    path: Path
    number: int
    known: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{self.split}: {self.number} images in {self.path}"]
        more = self.number - EXPECTED[self.split]
        if more:
            what = "more" if more > 0 else "fewer"
            expected = EXPECTED[self.split]
            lines.append(
                f"  warning: {abs(more)} images {what} than the {expected} of the edition of 2020"
            )
        if self.known:
            lines.append(f"  left out, in no archive: {', '.join(self.known)}")
        gone = [x for x, names in self.missing.items() if len(names) == self.sizes[x]]
        if gone:
            number = sum(self.sizes[x] for x in gone)
            archives = " ".join(f"{Path(x).name}.tar.gz" for x in gone)
            lines.append(f"  warning: nothing is there of {', '.join(gone)} ({number} images)")
            lines.append(f"  unpack there what has not been: {archives}")
        some = {x: names for x, names in self.missing.items() if x not in gone}
        if some:
            counts = [f"{x} {len(names)}" for x, names in some.items()]
            more_text = f" and {len(counts) - SHOWN} more folders" if len(counts) > SHOWN else ""
            example = next(iter(some.values()))[0]
            number = sum(map(len, some.values()))
            lines.append(f"  warning: {number} images are missing, {plain(example)} for one")
            lines.append(f"  of them by folder: {', '.join(counts[:SHOWN])}{more_text}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Summary:
    """The images that were found, and by the name of each registered set what was written."""

    found: list[Found]
    written: dict[str, Written]

    def __str__(self) -> str:
        sets = [f"{name}: {written}" for name, written in self.written.items()]
        return "\n".join([*map(str, self.found), *sets])


def prepare(
    root: str | Path,
    *,
    held_out: int = HELD_OUT,
    checks_images: bool = True,
    leaves_out_missing: bool = False,
    progress: bool = False,
) -> Summary:
    """Writes the files of both registered sets into the folder of Objects365.

    Args:
        root: the folder with train/, val/ and the two given files, see :func:`find_annotations`.
        held_out: how many images of the validation file stay validation.
        checks_images: whether folders are listed to find missing images.
        leaves_out_missing: whether the training file is written without missing images.
        progress: whether a progress bar is shown.

    Raises:
        DatasetError: a file is missing, is none of Objects365 v2, or cannot be written.
    """
    folder = Path(root)
    paths = {split: find_annotations(folder, split) for split in EXPECTED}
    sources = {split: read_source(path, progress=progress) for split, path in paths.items()}
    for split, source in sources.items():
        check_source(source, paths[split])
    check_same_classes(sources, paths)
    train, val = sources["train"], sources["val"]
    if held_out >= len(val.images):
        raise DatasetError(
            f"{paths['val']} has {len(val.images)} images, of which {held_out} are to be held out"
        )
    places = _Places(folder, checks_images)
    found = [Found(split, paths[split], len(sources[split].images)) for split in EXPECTED]
    kept = [places.kept(x, sources[x.split].images) for x in found]
    held = {image.id for image in val.images[:held_out]}
    minival = [image for image in kept[1] if image.id in held]
    moved = [image for image in kept[1] if image.id not in held]
    missing = {x for f in found for names in f.missing.values() for x in names}
    if leaves_out_missing:
        kept[0], moved = ([x for x in y if x.file_name not in missing] for y in (kept[0], moved))
    written = {}
    parts = {VAL: [Part(val, minival)], TRAIN: [Part(train, kept[0]), Part(val, moved)]}
    for name, of_set in parts.items():
        path = folder / FILES[name]
        written[name] = write_part_file(path, of_set, drops_bad=name == TRAIN, progress=progress)
    return Summary(found, written)


def find_annotations(root: Path, split: str) -> Path:
    """Finds zhiyuan_objv2_train.json or zhiyuan_objv2_val.json in one of its usual places.

    Raises:
        DatasetError: naming the places.
    """
    name = f"zhiyuan_objv2_{split}.json"
    places = [root / name, root / split / name, root / "annotations" / name]
    for path in places:
        if path.is_file():
            return path
    raise DatasetError(
        f"{name} is missing: it was looked for as {', '.join(map(str, places))}. Unpack it there, "
        "or name the folder of Objects365 with --root"
    )


def check_source(source: Source, path: Path) -> None:
    """Checks that a file is of Objects365 v2, and lists every image once.

    Raises:
        DatasetError: naming the file.
    """
    names = source.class_names
    if is_first_edition(names):
        raise DatasetError(
            f"{path} is of Objects365 v1 of 2019, whose classes are in another order (they begin "
            f"with {', '.join(names[:5])}): download the edition of 2020 (v2)"
        )
    if not is_objects365(names):
        raise DatasetError(
            f"{path} is none of Objects365 v2: it has {len(names)} classes that begin with "
            f"{', '.join(names[:5]) or 'nothing'}, and not 365 that begin with Person, Sneakers, "
            "Chair, Other Shoes"
        )
    for key in ("id", "file_name"):
        repeated = repeated_values(getattr(image, key) for image in source.images)
        if repeated:
            raise DatasetError(
                f"{path}: {len(repeated)} values of {key!r} are of several images, "
                f"{plain(str(repeated[0]))} for one. Download the file again"
            )


def check_same_classes(sources: dict[str, Source], paths: dict[str, Path]) -> None:
    """Checks that both files have the same classes with the same ids.

    Raises:
        DatasetError: naming the first that differs.
    """
    train, val = (
        [(x.id, x.name.strip().lower()) for x in sources[split].classes] for split in EXPECTED
    )
    for one, other in zip(train, val, strict=True):
        if one != other:
            raise DatasetError(
                f"{paths['train']} has the class {one[1]!r} with id {one[0]}, and {paths['val']} "
                f"{other[1]!r} with id {other[0]}: they are no pair"
            )


class _Places:
    """The places of images below the root, as archives were unpacked there.

    Args:
        checks_images: whether the images themselves are looked for.
    """

    def __init__(self, root: Path, checks_images: bool):
        self.root, self.checks_images, self.listed = root, checks_images, Folders()
        self.folders: dict[tuple[str, str, str], str] = {}

    def kept(self, found: Found, images: Sequence[Image]) -> list[Image]:
        """Returns the images that exist somewhere, under their names below the root.

        Args:
            found: takes in what is missing.
        """
        kept = []
        for image in images:
            folder, _, name = image.file_name.replace("\\", "/").rpartition("/")
            if f"{folder.rpartition('/')[2]}/{name}" in NEVER_THERE:
                found.known.append(image.file_name)
                continue
            place = self._folder(found.split, folder, name)
            path = f"{place}/{name}"
            found.sizes[place] += 1
            if self.checks_images and not self.listed.has(str(self.root / path)):
                found.missing.setdefault(place, []).append(path)
            kept.append(Image(image.id, path, image.width, image.height))
        return kept

    def _folder(self, split: str, folder: str, name: str) -> str:
        """Finds a patch's folder: as in the file of annotations, or as its archive unpacks."""
        edition = "v2" if "_v2_" in name else "v1"
        key = (split, folder, edition)
        if key not in self.folders:
            patch = folder.rpartition("/")[2]
            usual = f"{split}/{folder}" if folder else split
            others = (f"{split}/{patch}", f"{split}/images/{edition}/{patch}")
            there = (x for x in (usual, *others) if (self.root / x).is_dir())
            self.folders[key] = next(there, usual)
        return self.folders[key]
