"""The splits of nuScenes: scenes for training, validation and test, by name.

The official ones are those of the devkit. A version of one's own has a file `splits.json`, as the
devkit reads it: ``{"my_train": ["scene-0001", ...], "my_val": [...]}``.
"""

import json
import logging
from collections.abc import Sequence

from .tables import NuScenesError, Scene, Tables

logger = logging.getLogger(__name__)
# the ends of versions and their official splits; the devkit refuses others
OFFICIAL = {
    "trainval": ("train", "val"),
    "mini": ("mini_train", "mini_val"),
    "test": ("test",),
}
INSTALL = "pip install 'groupdetr_d2[nuscenes]'"


def official_splits() -> dict[str, list[str]]:
    """Returns the names of the scenes of each official split.

    Raises:
        NuScenesError: the devkit is not installed.
    """
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError as error:
        raise NuScenesError(
            f"nuScenes' devkit knows which scenes are for training, and cannot be imported "
            f"({error}): {INSTALL}"
        ) from error
    return create_splits_scenes()


def split_names(tables: Tables) -> list[str]:
    """Lists the splits that a version can have: official ones, and those of its splits.json."""
    ends = [names for end, names in OFFICIAL.items() if tables.version.endswith(end)]
    return [*(ends[0] if ends else ()), *own_splits(tables)]


def own_splits(tables: Tables) -> dict[str, list[str]]:
    """Reads splits.json of a version; empty if there is none.

    Raises:
        NuScenesError: it is not of the devkit's form, or has an official split's name.
    """
    path = tables.folder / "splits.json"
    if not path.is_file():
        return {}
    wanted = f'{path} is not of the form {{"my_val": ["scene-0001", ...]}}'
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NuScenesError(f"{wanted}: {error}") from error
    if not isinstance(found, dict):
        raise NuScenesError(wanted)
    for name, scenes in found.items():
        if not isinstance(scenes, list) or not all(isinstance(x, str) for x in scenes):
            raise NuScenesError(f"{wanted}: {name} is no list of names")
        if any(name in names for names in OFFICIAL.values()):
            raise NuScenesError(f"{path}: {name} is an official split; give yours another name")
    return found


def scenes_of(tables: Tables, split: str, present: Sequence[str] | None = None) -> list[str]:
    """Returns the scenes of a split that the tables have.

    Args:
        present: the names of the scenes of the tables; read if not given.

    Raises:
        NuScenesError: the version has no such split, or none of its scenes.
    """
    wanted = own_splits(tables).get(split)
    if wanted is None:
        _check_fits(tables, split)
        wanted = official_splits()[split]
    if not wanted:
        raise NuScenesError(f"split {split} of {tables.folder} is empty: it names no scenes")
    if present is None:
        present = [scene.name for scene in tables.read(Scene)]
    found = sorted(set(wanted) & set(present))
    if not found:
        raise NuScenesError(
            f"{tables.path('scene')} has none of the {len(wanted)} scenes of the split {split}, "
            f"such as {wanted[0]}: its first is {(list(present) or ['none'])[0]}"
        )
    if len(found) < len(set(wanted)):
        absent = sorted(set(wanted) - set(present))
        logger.warning(
            "%s: %d of %d scenes of the split %s are absent, the first is %s",
            *(tables.path("scene"), len(absent), len(set(wanted)), split, absent[0]),
        )
    return found


def _check_fits(tables: Tables, split: str) -> None:
    """Checks that an official split is one of the version."""
    if split in split_names(tables):
        return
    versions = [f"v1.0-{end}" for end, names in OFFICIAL.items() if split in names]
    if versions:
        raise NuScenesError(
            f"split {split} is of {versions[0]}, and {tables.folder} is another version"
        )
    raise NuScenesError(
        f"{tables.folder} has no split {split}: "
        f"{', '.join(split_names(tables)) or 'no split'} is known, and splits.json there adds more"
    )
