"""The quick-start set of 3D detection: a small copy of nuScenes, generated once from a seed.

A vehicle drives among coloured cuboids of the ten classes, which six cameras see. A class differs
from the others in hue and size, but hues are noisy, objects hide one another, and how far away
and how large they are is to be learned. Tables and files are laid out as in nuScenes v1.0, so that
its devkit evaluates on them, too.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import current_process, parent_process
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from .cube_rendering import Rendering, Scenery, random_scenery, render
from .cube_rig import LIDAR, Sensor, Shot, rig_of, shots_of
from .cube_spec import CubesSpec
from .cube_tables import MAP_FILE, CubesTables, Sightings, begin_of, file_of
from .cube_world import World, world_of
from .geometry import inverse, moved_points
from .names import CAMERAS, CLASSES

logger = logging.getLogger(__name__)

SETS = ("cubes_train", "cubes_val")
TABLES = "v1.0-cubes"
MANY, MOST_PROCESSES = 50, 8  # scenes that are worth several processes


def cubes_root() -> Path:
    """The folder of generated copies, in $DETECTRON2_DATASETS."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "cubes"


def is_generated(name: str) -> bool:
    """Whether a name is registered as one of these sets; someone else's stays what it is."""
    is_known = name in DatasetCatalog.list()
    return is_known and MetadataCatalog.get(name).get("is_generated", False)


def register_cubes_of(cfg) -> None:
    """Registers both sets as DATASETS.CUBES says, where one of them is used."""
    if {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} & {*SETS}:
        chosen = {key.lower(): value for key, value in cfg.DATASETS.CUBES.items()}
        register_cubes(CubesSpec(**chosen))


def register_cubes(spec: CubesSpec) -> None:
    """Registers both sets of a copy, in place of another's; it is generated when it is loaded.

    Names that someone else has registered stay what they are.
    """
    root = cubes_root()
    for name in SETS:
        if is_generated(name):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        elif name in DatasetCatalog.list():
            continue
        DatasetCatalog.register(name, partial(_load, name))
        MetadataCatalog.get(name).set(
            evaluator_type="nuscenes",
            thing_classes=list(CLASSES),
            nuscenes_root=str(root / spec.folder),
            nuscenes_version=TABLES,
            nuscenes_split=name,
            is_generated=True,
            prepare=partial(generate_cubes, spec, root),
        )


def _load(name: str) -> Sequence[dict[str, Any]]:
    from .catalog import frames_of  # which reads what is registered here

    return frames_of(name)


def generate_cubes(spec: CubesSpec, root: Path) -> Path:
    """Returns the folder of a copy, with tables in `v1.0-cubes/`; makes it if it is not there.

    It is written under a temporary name and moved into place, so that an interrupted or a parallel
    run never leaves half a copy.
    """
    folder = root / spec.folder
    if folder.exists():
        return folder
    logger.info("generating %d scenes in %s", spec.num_scenes, folder)
    root.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=root))
    unfinished.chmod(0o755)  # for others who share the folder
    try:
        _write(spec, unfinished)
        unfinished.rename(folder)
    except BaseException as error:
        shutil.rmtree(unfinished)
        if not (isinstance(error, OSError) and folder.exists()):  # another process was faster
            raise
    return folder


def _write(spec: CubesSpec, folder: Path) -> None:
    """Writes all files of a copy into an empty folder."""
    shots = shots_of(spec)
    for channel in shots:
        (folder / "samples" / channel).mkdir(parents=True)
        if spec.sweeps and channel != LIDAR:
            (folder / "sweeps" / channel).mkdir(parents=True)
    (folder / MAP_FILE).parent.mkdir()
    cv2.imwrite(str(folder / MAP_FILE), np.full((8, 8), 255, dtype=np.uint8))
    tables = CubesTables(spec)
    write = partial(_write_scene, spec, shots, folder)
    with closing(_of_all_scenes(write, spec.num_scenes)) as scenes:
        for number, (world, rig, sightings) in enumerate(scenes):
            tables.add_scene(number, world, rig, shots, sightings)
    tables.write(folder / TABLES)


def _of_all_scenes(write: Callable[[int], Any], number: int) -> Generator[Any, None, None]:
    """Yields the results of scenes in order; many are written by several processes."""
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    if processes == 1 or number < MANY or current_process().daemon:  # which may start none
        yield from map(write, range(number))
        return
    with ProcessPoolExecutor(processes, initializer=_end_with_parent) as pool:
        try:
            yield from pool.map(write, range(number))
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leaves Ctrl-C to the process that waits, and ends when that one does, however it does."""

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    parent = parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


class CubesScene:
    """One scene that can be rendered; the same number gives the same pictures."""

    def __init__(self, spec: CubesSpec, number: int):
        self.spec, self.number = spec, number
        self.world: World = world_of(spec, number)
        rng = np.random.default_rng([spec.seed, number, 1])
        self.rig: dict[str, Sensor] = rig_of(spec, rng)
        size = (spec.height, spec.width)
        classes = self.world.objects.classes
        self.scenery: Scenery = random_scenery(rng, classes, size, spec.hue_noise, spec.pixel_noise)

    def render(self, shot: Shot) -> Rendering:
        """Draws what a camera sees at a moment."""
        seconds, sensor = shot.offset / 1e6, self.rig[shot.channel]
        place = CAMERAS.index(shot.channel)
        return render(
            self.world.ego.poses(np.array([seconds]))[0] @ sensor.to_ego,
            sensor.intrinsic,
            self.world.objects.boxes_at(seconds),
            self.world.objects.is_moving,
            self.scenery,
            np.random.default_rng([self.spec.seed, self.number, 2, place, abs(shot.offset)]),
        )

    def lidar_points(self, shot: Shot) -> np.ndarray:
        """Makes a tiny sweep (T, 5): the centre of every object in the lidar's frame."""
        seconds = shot.offset / 1e6
        to_global = self.world.ego.poses(np.array([seconds]))[0] @ self.rig[LIDAR].to_ego
        centres = moved_points(self.world.objects.boxes_at(seconds)[:, :3], inverse(to_global))
        return np.pad(centres, [(0, 0), (0, 2)]).astype(np.float32)


def _write_scene(
    spec: CubesSpec, shots: dict[str, list[Shot]], folder: Path, number: int
) -> tuple[World, dict[str, Sensor], Sightings]:
    """Writes the files of a scene; returns its objects, its sensors, and what keyframes show."""
    scene = CubesScene(spec, number)
    return scene.world, scene.rig, _write_files(scene, shots, folder)


def _write_files(scene: CubesScene, shots: dict[str, list[Shot]], folder: Path) -> Sightings:
    """Writes the files of a scene; returns what is seen at its keyframes."""
    shape = (scene.spec.keyframes, len(scene.world.objects.boxes))
    visible, covered = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    begin = begin_of(scene.number)
    quality = [cv2.IMWRITE_JPEG_QUALITY, scene.spec.jpeg_quality]
    # small objects keep their colours
    quality += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    for shot in (shot for of_channel in shots.values() for shot in of_channel):
        file = folder / file_of(scene.world, begin, shot)
        if shot.channel == LIDAR:
            file.write_bytes(scene.lidar_points(shot).tobytes())
            continue
        rendering = scene.render(shot)
        file.write_bytes(cv2.imencode(".jpg", rendering.picture, quality)[1].tobytes())
        if shot.is_key:
            visible[shot.keyframe] += rendering.visible
            covered[shot.keyframe] += rendering.covered
    return Sightings(visible, covered)


for _name in SETS:  # as Detectron2 registers its own
    if _name not in DatasetCatalog.list():
        register_cubes(CubesSpec())
