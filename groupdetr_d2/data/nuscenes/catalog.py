"""Registration of nuScenes with Detectron2, and the frames of registered sets."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..checks import check_registered
from .building import build_index, read_content
from .index import NuScenesFrames
from .names import CLASSES
from .preparing import index_path, load_index, write_index
from .splits import scenes_of
from .tables import NuScenesError, Tables

logger = logging.getLogger(__name__)
OFFICIAL = {
    "nuscenes_train": ("v1.0-trainval", "train"),
    "nuscenes_val": ("v1.0-trainval", "val"),
    "nuscenes_mini_train": ("v1.0-mini", "mini_train"),
    "nuscenes_mini_val": ("v1.0-mini", "mini_val"),
}
QUICK = 200 << 20  # bytes of tables whose index is made in seconds, when it is asked for

_FRAMES: dict[tuple, NuScenesFrames] = {}  # sets that were opened in this process


@dataclass(frozen=True)
class DatasetsFolder(os.PathLike):
    """A folder in $DETECTRON2_DATASETS, which is looked up when the path is used."""

    name: str

    def __fspath__(self) -> str:
        return os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), self.name)

    def __str__(self) -> str:
        return self.__fspath__()


def register_nuscenes() -> None:
    """Registers the official sets, unless their names are taken."""
    for name, (version, split) in OFFICIAL.items():
        if name not in DatasetCatalog.list():
            register_split(name, DatasetsFolder("nuscenes"), version, split)


def register_split(
    name: str,
    root: str | os.PathLike,
    version: str,
    split: str,
    *,
    prepare: Callable[[], object] | None = None,
) -> None:
    """Registers a split of a copy of nuScenes.

    Args:
        root: the folder that holds samples/, sweeps/ and the folder of the version.
        prepare: generates the copy unless it is there; marks the set as a generated one.
    """
    DatasetCatalog.register(name, partial(frames_of, name))
    MetadataCatalog.get(name).set(
        evaluator_type="nuscenes",
        thing_classes=list(CLASSES),
        nuscenes_root=root,
        nuscenes_version=version,
        nuscenes_split=split,
        **({"is_generated": True, "prepare": prepare} if prepare else {}),
    )


def frames_of(name: str) -> NuScenesFrames:
    """Returns the keyframes of a registered split; its index is opened once in a process.

    An index that is missing or stale is made, unless that takes minutes.

    Raises:
        NuScenesError: the set is none of nuScenes, its tables are missing or damaged, or
            `prepare-nuscenes` is to be run first.
    """
    check_registered([name])
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "nuscenes":
        raise NuScenesError(f"data set {name} is none of nuScenes: it has images, and no keyframes")
    if metadata.get("prepare") is not None:  # a generated set
        metadata.prepare()
    root = os.fspath(metadata.nuscenes_root)
    try:
        return open_frames(root, metadata.nuscenes_version, metadata.nuscenes_split)
    except NuScenesError as error:
        raise NuScenesError(f"data set {name}: {error}") from error


def open_frames(root: str | Path, version: str, split: str) -> NuScenesFrames:
    """Returns the keyframes of a split of a copy of nuScenes, see :func:`frames_of`."""
    tables = _tables(root, version)
    state = tables.state()
    key = (os.path.abspath(root), version, split, str(sorted(state.items())))
    if key not in _FRAMES:
        index = load_index(index_path(root, version, split), state)
        _FRAMES[key] = NuScenesFrames(index, str(root)) if index else _built(tables, split, state)
    return _FRAMES[key]


def _tables(root: str | Path, version: str) -> Tables:
    if not os.path.isdir(root):
        raise NuScenesError(
            f"{root} does not exist. Set $DETECTRON2_DATASETS (now "
            f"{os.getenv('DETECTRON2_DATASETS', 'datasets')}) to the folder that holds nuscenes/"
        )
    return Tables(root, version)


def _built(tables: Tables, split: str, state: dict[str, list[int]]) -> NuScenesFrames:
    """Makes an index; it stays in memory where it cannot be written."""
    path = index_path(tables.root, tables.version, split)
    if sum(size for size, _ in state.values()) > QUICK:
        what = "is of other tables or damaged" if path.is_file() else "does not exist"
        raise NuScenesError(
            f"the index {path} {what}. Make it once, which takes some minutes: python -m "
            f"groupdetr_d2 prepare-nuscenes --root {tables.root} --version {tables.version}"
        )
    scenes = scenes_of(tables, split)
    index = build_index(read_content(tables), scenes)
    try:
        index = write_index(tables, split, index)
    except NuScenesError as error:
        logger.warning("%s: the next run makes it again", error)
    return NuScenesFrames(index, str(tables.root))
