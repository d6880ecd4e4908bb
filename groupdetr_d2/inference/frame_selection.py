"""The keyframes that a user names: by sample tokens, scenes, registered sets or folders."""

import difflib
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.nuscenes.building import build_index, read_content
from ..data.nuscenes.catalog import frames_of, open_frames
from ..data.nuscenes.cubes import register_cubes_of
from ..data.nuscenes.index import NuScenesFrames
from ..data.nuscenes.preparing import splits_here
from ..data.nuscenes.splits import split_names
from ..data.nuscenes.tables import Tables
from ..errors import UserError
from ..evaluation.nuscenes_data_report import find_version


@dataclass(frozen=True)
class SceneFrames:
    """Some keyframes of one scene, in time.

    Attributes:
        numbers: the place of each among all keyframes of the scene, from 0.
        has_truth: whether the copy has annotations.
    """

    name: str
    frames: NuScenesFrames
    numbers: list[int]
    has_truth: bool


@dataclass(frozen=True)
class FrameFinder:
    """Finds keyframes by name.

    Args:
        cfg: of the model; scenes and tokens are looked up in its first test set.
        root: the copy of nuScenes in which they are looked up instead, if there is one.
        version: of the tables of copies; if not given, they have one alone.
    """

    cfg: CfgNode
    root: str | None = None
    version: str | None = None

    def find(self, names: Sequence[str]) -> list[SceneFrames]:
        """Returns the keyframes with some names, each once, scene by scene.

        Raises:
            UserError: a name is none of a keyframe, or what it names cannot be read.
        """
        register_cubes_of(self.cfg)
        return by_scene([frames for name in names for frames in self._named(name)])

    def _named(self, name: str) -> list[NuScenesFrames]:
        is_set = name in DatasetCatalog.list()
        if self.root:
            split = MetadataCatalog.get(name).get("nuscenes_split") if is_set else name
            if split in self._home:
                return [self._home[split]]
        if is_set:
            return [frames_of(name)]
        if os.path.isdir(name):
            return list(splits_of_copy(name, self.version).values())
        if os.path.isfile(name):
            raise UserError(
                f"{name} is a file, and the model sees the photographs of several cameras at once: "
                "name a sample token, a scene, a registered set or a copy of nuScenes"
            )
        for frames in self._home.values():
            if name in frames.scenes:
                return [frames_of_scene(frames, name)]
            if name in frames.tokens:
                place = frames.position_of(name)
                return [frames[place : place + 1]]
        raise UserError(self._unknown(name))

    @functools.cached_property
    def _home(self) -> dict[str, NuScenesFrames]:
        """The splits in which scenes and tokens are looked up, by name."""
        if self.root:
            return splits_of_copy(self.root, self.version)
        if not self.cfg.DATASETS.TEST:
            raise UserError("the checkpoint names no test set to look into: give --nuscenes ROOT")
        name = self.cfg.DATASETS.TEST[0]
        try:
            return {name: frames_of(name)}
        except UserError as error:
            raise UserError(f"{error}. Or give --nuscenes ROOT, another copy") from error

    def _unknown(self, name: str) -> str:
        scenes = [scene for frames in self._home.values() for scene in frames.scenes]
        tokens = [token for frames in self._home.values() for token in frames.tokens]
        near = difflib.get_close_matches(name, [*self._home, *scenes], n=3, cutoff=0.5)
        near += difflib.get_close_matches(name, tokens, n=2, cutoff=0.8)
        where = self.root or ", ".join(self._home)
        like = f"similar are {', '.join(near)}" if near else f"the first scene is {scenes[0]}"
        return (
            f"{name} is no folder and no registered set, and none of the {len(scenes)} scenes and "
            f"{len(tokens)} sample tokens of {where}; {like}"
            f"{'' if self.root else '. Others are found with --nuscenes ROOT'}"
        )


def splits_of_copy(root: str | Path, version: str | None) -> dict[str, NuScenesFrames]:
    """Opens all splits of a copy of nuScenes, by name; without any, all scenes as one.

    Raises:
        UserError: the folder is no such copy, or has several versions and none is given.
    """
    version = version or find_version(str(root))
    tables = Tables(root, version)
    if split_names(tables):
        return {name: open_frames(root, version, name) for name in splits_here(tables)}
    content = read_content(tables)
    index = build_index(content, [scene.name for scene in content.scenes])
    return {version: NuScenesFrames(index, str(root))}


def frames_of_scene(frames: NuScenesFrames, name: str) -> NuScenesFrames:
    """Returns the keyframes of the scene with a name, in time."""
    index = frames.arrays
    rows = index.key_scene[frames.chosen]
    keys = frames.chosen[[index.scene_names[row] == name for row in rows.tolist()]]
    return NuScenesFrames(index, frames.root, keys[np.argsort(index.key_time[keys])])


def by_scene(found: Iterable[NuScenesFrames]) -> list[SceneFrames]:
    """Sorts keyframes into their scenes, in the order of the first ones; repeated ones count once.

    Args:
        found: keyframes of copies, some of which may be the same.
    """
    seen: set[str] = set()
    scenes: dict[tuple[int, str], tuple[NuScenesFrames, list[int]]] = {}
    for frames in found:
        index = frames.arrays
        for token, key in zip(frames.tokens, frames.chosen.tolist(), strict=True):
            name = index.scene_names[int(index.key_scene[key])]
            if token not in seen:
                scenes.setdefault((id(index), name), (frames, []))[1].append(key)
            seen.add(token)
    return [_scene_of(name, frames, keys) for (_, name), (frames, keys) in scenes.items()]


def _scene_of(name: str, frames: NuScenesFrames, keys: list[int]) -> SceneFrames:
    index = frames.arrays
    whole = frames_of_scene(NuScenesFrames(index, frames.root), name)
    numbers = [number for number, key in enumerate(whole.chosen.tolist()) if key in set(keys)]
    chosen = NuScenesFrames(index, frames.root, whole.chosen[numbers])
    return SceneFrames(name, chosen, numbers, has_truth=len(index.box_class) > 0)
