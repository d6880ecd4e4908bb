"""Preparing nuScenes: the index of each split of a version, made once of its tables."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from .building import build_index, read_content
from .index import NuScenesFrames
from .index_file import FrameIndex, open_index, save_index
from .names import CLASSES
from .splits import scenes_of, split_names
from .tables import NuScenesError, Scene, Tables

logger = logging.getLogger(__name__)
FOLDER = "groupdetr_d2"  # of the indices, beside the tables


@dataclass(frozen=True)
class Summary:
    """The contents of a prepared split.

    Attributes:
        boxes: the number of boxes by class; those of the ten classes that have a point.
        absent_keys: images of keyframes that are not there, and their samples.
        absent_sweeps: images between keyframes, which PETRv2 alone reads, that are not there.
    """

    split: str
    path: str
    scenes: int
    keyframes: int
    images: int
    boxes: dict[str, int]
    absent_keys: list[str] = field(default_factory=list)
    absent_sweeps: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.split}: {self.scenes} scenes, {self.keyframes} keyframes, {self.images} images",
            f"  boxes: {', '.join(f'{name} {number}' for name, number in self.boxes.items())}",
        ]
        absent = {"of keyframes": self.absent_keys, "between keyframes": self.absent_sweeps}
        for kind, names in absent.items():
            if names:
                lines.append(f"  {len(names)} images {kind} are absent, the first is {names[0]}")
        return "\n".join([*lines, f"  index: {self.path}"])


def index_path(root: str | Path, version: str, split: str) -> Path:
    """Returns the path of a split's index.

    It lies in the copy of nuScenes, or in $GROUPDETR_CACHE if that is set.
    """
    folder, chosen = Path(root, FOLDER), os.getenv("GROUPDETR_CACHE")
    if chosen:
        name = sha256(os.path.realpath(root).encode()).hexdigest()[:24]
        folder = Path(chosen, "nuscenes", name)
    return folder / f"{version}_{split}.npz"


def prepare(root: str | Path, version: str, *, progress: bool = False) -> list[Summary]:
    """Makes the index of each split that a version has; those that are up to date are kept.

    Raises:
        NuScenesError: a table is missing or damaged, or no split has a scene here.
    """
    tables = Tables(root, version, progress=progress)
    state = tables.state()
    splits = splits_here(tables)
    found = {split: load_index(index_path(root, version, split), state) for split in splits}
    wanted = [split for split, index in found.items() if index is None]
    if wanted:
        content = read_content(tables)  # once for all
        for split in wanted:
            index = build_index(content, splits[split])
            found[split] = write_index(tables, split, index)
    indices = {split: index for split, index in found.items() if index is not None}
    return [summary_of(split, NuScenesFrames(x, str(root))) for split, x in indices.items()]


def splits_here(tables: Tables) -> dict[str, list[str]]:
    """Returns the scenes of each split that has one in the tables.

    Raises:
        NuScenesError: there is none.
    """
    names = split_names(tables)
    present = [scene.name for scene in tables.read(Scene)]
    found: dict[str, list[str]] = {}
    first: NuScenesError | None = None
    for name in names:
        try:
            found[name] = scenes_of(tables, name, present)
        except NuScenesError as error:
            logger.warning("%s", error)
            first = first or error
    if not found:
        raise first or NuScenesError(
            f"{tables.folder} has no splits: its name ends with none of trainval, mini and test, "
            "and it has no splits.json"
        )
    return found


def write_index(tables: Tables, split: str, index: FrameIndex) -> FrameIndex:
    """Writes the index of a split that was built of tables, and opens it."""
    path = index_path(tables.root, tables.version, split)
    header = {"version": tables.version, "split": split, "state": tables.state()}
    logger.info("writing %s", path)
    return save_index(path, index, **header)


def load_index(path: Path, state: dict[str, list[int]]) -> FrameIndex | None:
    """Opens an index; None if there is none, or the log says what is wrong with it.

    Args:
        state: of the tables, see :meth:`Tables.state`.
    """
    if not path.is_file():
        return None
    try:
        index = open_index(path)
    except NuScenesError as error:
        logger.warning("%s: it is made anew", error)
        return None
    if index.header.get("state") != state:
        logger.warning("%s is of other tables than those that are there: it is made anew", path)
        return None
    return index


def summary_of(split: str, frames: NuScenesFrames) -> Summary:
    """Counts what a split has, and looks for its images."""
    index = frames.arrays
    numbers = np.bincount(index.box_class, minlength=len(CLASSES)).tolist()
    keyframe = np.full(len(index.image_time), -1)  # that an image belongs to, if it is of one
    keyframe[index.key_images] = np.arange(len(frames))[:, None]
    absent = absent_files(frames.root, index.image_names)
    return Summary(
        split=split,
        path=str(index.path),
        scenes=len(frames.scenes),
        keyframes=len(frames),
        images=len(index.image_time),
        boxes=dict(zip(CLASSES, numbers, strict=True)),
        absent_keys=[
            f"{index.image_names[i]} of sample {frames.tokens[keyframe[i]]}"
            for i in absent
            if keyframe[i] >= 0
        ],
        absent_sweeps=[index.image_names[i] for i in absent if keyframe[i] < 0],
    )


def absent_files(root: str | Path, names: Iterable[str]) -> list[int]:
    """Lists the places of names below a folder that are no files; folders are listed once each."""
    listed: dict[str, set[str]] = {}
    absent = []
    for place, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        if folder not in listed:
            path = Path(root, folder)
            listed[folder] = set(os.listdir(path)) if path.is_dir() else set()
        if file not in listed[folder]:
            absent.append(place)
    return absent
