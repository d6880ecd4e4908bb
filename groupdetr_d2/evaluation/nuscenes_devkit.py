"""The official evaluation of nuscenes-devkit as functions, without what it prints.

The devkit is an extra of this package, and slow to import and to read the tables; nothing happens
before it is needed, and the tables that were read last are kept.
"""

import contextlib
import functools
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

CONFIG = "detection_cvpr_2019"  # the benchmark's ranges, thresholds and weights


def check_devkit() -> None:
    """Tells the user which package is missing, if one is, by a UserError."""
    try:
        import nuscenes.eval.detection.evaluate  # noqa: F401 - its import is the check
    except ImportError as error:
        raise UserError(
            f"the evaluation on nuScenes needs nuscenes-devkit ({error}); "
            "install it with pip install 'groupdetr_d2[nuscenes]'"
        ) from error


@contextlib.contextmanager
def _speaking_for(root: str, version: str) -> Iterator[None]:
    """Silences the devkit, and says which tables it is about where it fails."""
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            yield
    except Exception as error:  # it raises that class itself
        raise UserError(
            f"nuscenes-devkit cannot use {Path(root, version)} ({type(error).__name__}: {error}); "
            f"find out what is wrong with python -m groupdetr_d2 check-data --nuscenes {root} "
            f"--version {version}"
        ) from error


@functools.lru_cache(maxsize=1)  # those of v1.0-trainval take gigabytes
def tables_of(root: str, version: str) -> Any:
    """Reads the tables of a version folder, a ``NuScenes`` of the devkit, once in a process."""
    check_devkit()
    from nuscenes import NuScenes

    with _speaking_for(root, version):
        return NuScenes(version=version, dataroot=root, verbose=False)


def tokens_of_split(root: str, version: str, split: str) -> list[str]:
    """Lists the samples of an official split, or of one in the version's splits.json."""
    tables = tables_of(root, version)
    from nuscenes.utils import splits

    with _speaking_for(root, version):
        if splits.is_predefined_split(split):
            names = splits.create_splits_scenes()[split]
        else:
            names = splits.get_scenes_of_custom_split(split, tables)
        scenes = {scene["token"] for scene in tables.scene if scene["name"] in set(names)}
        return [x["token"] for x in tables.sample if x["scene_token"] in scenes]


def has_truth(root: str, version: str, tokens: list[str]) -> bool:
    """Tells whether any of these samples has an object of the ten classes."""
    tables = tables_of(root, version)
    from nuscenes.eval.detection.utils import category_to_detection_name

    return any(
        category_to_detection_name(tables.get("sample_annotation", token)["category_name"])
        for sample in tokens
        for token in tables.get("sample", sample)["anns"]
    )


def detection_metrics(root: str, version: str, split: str, results_file: Path) -> dict:
    """Evaluates a result file; returns what the devkit calls its metrics summary.

    Args:
        results_file: has a key for each sample of the split, and at least one box.

    Returns:
        ``mean_ap``, ``nd_score``, ``tp_errors``, ``mean_dist_aps`` by class, ``label_tp_errors`` by
        class, and more; AP between 0 and 1, errors in their own units.
    """
    tables = tables_of(root, version)
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    config = config_factory(CONFIG)
    with tempfile.TemporaryDirectory() as folder, _speaking_for(root, version):
        own = DetectionEval(tables, config, str(results_file), split, folder, verbose=False)
        metrics, _ = own.evaluate()
    return metrics.serialize()
