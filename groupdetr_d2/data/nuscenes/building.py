"""Building the index of a split from the tables of nuScenes.

Boxes are moved from the global frame into that of the lidar at its own time. Every image keeps the
place of the vehicle at the image's own time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .geometry import rotation_of
from .index_file import FrameIndex, Texts, motions_of
from .names import CAMERAS, CLASS_OF_CATEGORY, CLASSES
from .tables import (
    CalibratedSensor,
    Category,
    EgoPose,
    Instance,
    NuScenesError,
    Sample,
    SampleAnnotation,
    SampleData,
    Scene,
    Sensor,
    Tables,
    Tokens,
)

LIDAR = "LIDAR_TOP"
LONGEST = 1.5  # seconds between annotations that a velocity is computed of, as in the devkit


class Image(NamedTuple):
    """A file of a camera, or the lidar's of a keyframe."""

    token: str
    sample: int
    channel: str
    calibration: int
    ego_token: str
    timestamp: int
    is_key: bool
    name: str
    size: tuple[int, int]


@dataclass
class Annotations:
    """The columns of all annotations, T, in the order of the table.

    Attributes:
        sample: rows of samples, (T,).
        category: places in names.CLASSES, -1 for kinds that are not evaluated, (T,).
        center: metres in the global frame, (T, 3).
        rotation: quaternions, w first, (T, 4).
        points: of lidar and radar, (T,).
        velocity: metres per second in the global frame, nan where it is unknown, (T, 2).
    """

    tokens: list[str]
    sample: np.ndarray
    category: np.ndarray
    center: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    points: np.ndarray
    velocity: np.ndarray


@dataclass
class Content:
    """The tables of a version as far as an index needs them."""

    tables: Tables
    scenes: list[Scene]
    scene_rows: Tokens
    samples: list[Sample]
    sample_rows: Tokens
    sensors: list[CalibratedSensor]
    images: list[Image]  # of cameras, and keyframes of the lidar
    ego: dict[str, tuple]  # the poses that images name: translation and quaternion
    annotations: Annotations


def read_content(tables: Tables) -> Content:
    """Reads all tables of a version.

    Raises:
        NuScenesError: a table is missing or damaged, or a token has no record.
    """
    scenes = list(tables.read(Scene))
    samples = list(tables.read(Sample))
    sample_rows = Tokens(tables.path("sample"), (x.token for x in samples))
    sensors = list(tables.read(CalibratedSensor))
    images = _read_images(tables, sample_rows, sensors)
    return Content(
        tables=tables,
        scenes=scenes,
        scene_rows=Tokens(tables.path("scene"), (x.token for x in scenes)),
        samples=samples,
        sample_rows=sample_rows,
        sensors=sensors,
        images=images,
        ego=_read_poses(tables, images),
        annotations=_read_annotations(tables, samples, sample_rows),
    )


def _read_images(
    tables: Tables, sample_rows: Tokens, sensors: Sequence[CalibratedSensor]
) -> list[Image]:
    kinds = list(tables.read(Sensor))
    kind_rows = Tokens(tables.path("sensor"), (x.token for x in kinds))
    places = [kind_rows.row(x.sensor_token, x.TABLE, x.token) for x in sensors]
    channels = [kinds[place].channel for place in places]
    sensor_rows = Tokens(tables.path("calibrated_sensor"), (x.token for x in sensors))
    images = []
    for x in tables.read(SampleData):
        calibration = sensor_rows.row(x.calibrated_sensor_token, x.TABLE, x.token)
        channel = channels[calibration]
        if channel in CAMERAS or (channel == LIDAR and x.is_key_frame):
            sample = sample_rows.row(x.sample_token, x.TABLE, x.token)
            where = (x.token, sample, channel, calibration, x.ego_pose_token)
            size = (x.width, x.height)
            images.append(Image(*where, x.timestamp, x.is_key_frame, x.filename, size))
    return images


def _read_poses(tables: Tables, images: Sequence[Image]) -> dict[str, tuple]:
    needed = {x.ego_token: x.token for x in images}
    found = {}
    for pose in tables.read(EgoPose):
        if pose.token in needed:
            found[pose.token] = (*pose.translation, *pose.rotation)
    absent = next((token for token in needed if token not in found), None)
    if absent is not None:
        Tokens(tables.path("ego_pose"), ()).row(absent, SampleData.TABLE, needed[absent])
    return found


def _read_annotations(
    tables: Tables, samples: Sequence[Sample], sample_rows: Tokens
) -> Annotations:
    classes = _classes_of_instances(tables)
    found = list(tables.read(SampleAnnotation))
    rows = Tokens(tables.path("sample_annotation"), (x.token for x in found))
    sample = [sample_rows.row(x.sample_token, x.TABLE, x.token) for x in found]
    center = _array([x.translation for x in found], 3)
    links = [
        [rows.row(token, x.TABLE, x.token) if token else i for token in (x.prev, x.next)]
        for i, x in enumerate(found)
    ]
    category = [classes[0].row(x.instance_token, x.TABLE, x.token) for x in found]
    times = np.array([x.timestamp for x in samples], dtype=np.int64)
    return Annotations(
        tokens=[x.token for x in found],
        sample=np.array(sample, dtype=np.int64),
        category=classes[1][np.array(category, dtype=np.int64)],
        center=center,
        size=_array([x.size for x in found], 3),
        rotation=_array([x.rotation for x in found], 4),
        points=np.array([x.num_lidar_pts + x.num_radar_pts for x in found], dtype=np.int32),
        velocity=velocities(
            center,
            times[np.array(sample, dtype=np.int64)] * 1e-6,
            np.array(links, dtype=np.int64).reshape(-1, 2),
        ),
    )


def _classes_of_instances(tables: Tables) -> tuple[Tokens, np.ndarray]:
    """Returns the rows of instances, and their places in names.CLASSES, -1 for other kinds."""
    categories = list(tables.read(Category))
    category_rows = Tokens(tables.path("category"), (x.token for x in categories))
    names = [CLASS_OF_CATEGORY.get(x.name) for x in categories]
    numbers = [-1 if name is None else CLASSES.index(name) for name in names]
    instances = list(tables.read(Instance))
    rows = [category_rows.row(x.category_token, x.TABLE, x.token) for x in instances]
    found = np.array([numbers[row] for row in rows], dtype=np.int64)
    return Tokens(tables.path("instance"), (x.token for x in instances)), found


def velocities(center: np.ndarray, seconds: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Computes velocities (T, 2) in metres per second as the devkit's `box_velocity` does.

    They are differences between the annotation before and the one after, or the own one where an
    object's track ends; nan if there is neither, or if more than 1.5 s lie between two neighbours
    (3 s between both).

    Args:
        center: metres in the global frame, (T, 3).
        seconds: times (T,).
        links: the rows of the annotations before and after, the own row if there is none, (T, 2).
    """
    first, last = links[:, 0], links[:, 1]
    own = np.arange(len(links))
    gap = seconds[last] - seconds[first]
    longest = np.where((first != own) & (last != own), 2 * LONGEST, LONGEST)
    is_known = (first != last) & (gap <= longest) & (gap != 0)
    moved = center[last, :2] - center[first, :2]
    return np.where(is_known[:, None], moved / np.where(is_known, gap, 1)[:, None], np.nan)


def build_index(content: Content, names: Sequence[str]) -> FrameIndex:
    """Builds the index of the scenes with some names.

    Raises:
        NuScenesError: a keyframe lacks a camera or the lidar, or there is no keyframe.
    """
    scenes = [row for row, scene in enumerate(content.scenes) if scene.name in set(names)]
    keys = _chosen_samples(content, scenes)
    images = _sorted_images(content, keys)
    lidars = _lidars_of(content, keys)
    key_images, first_image = _places(content, images, keys, scenes)
    key_of = {row: key for key, row in enumerate(keys)}
    place_of_scene = {row: place for place, row in enumerate(scenes)}
    samples = [content.samples[row] for row in keys]
    used = sorted({x.calibration for x in images})
    calibrations = [content.sensors[row] for row in used]
    place_of_calibration = {row: place for place, row in enumerate(used)}
    lidar_poses = [_pose(content.sensors[x.calibration]) for x in lidars]
    arrays: dict[str, Any] = {
        "scene_names": Texts.of(content.scenes[row].name for row in scenes),
        "calibration_pose": _array([_pose(x) for x in calibrations], 7),
        "calibration_matrix": np.array([_matrix(content, x) for x in calibrations]),
        "image_names": Texts.of(x.name for x in images),
        "image_size": np.array([x.size for x in images], dtype=np.int32),
        "image_time": np.array([x.timestamp for x in images], dtype=np.int64),
        "image_pose": _array([content.ego[x.ego_token] for x in images], 7),
        "image_calibration": np.array(
            [place_of_calibration[x.calibration] for x in images], dtype=np.int32
        ),
        "first_image": first_image,
        "key_tokens": Texts.of(x.token for x in samples),
        "key_scene": np.array([place_of_scene[_scene_row(content, x)] for x in samples]),
        "key_time": np.array([x.timestamp for x in samples], dtype=np.int64),
        "key_images": key_images,
        "key_previous": np.array([_previous(content, x, key_of) for x in samples]),
        "key_lidar2ego": _array(lidar_poses, 7),
        "key_ego2global": _array([content.ego[x.ego_token] for x in lidars], 7),
    }
    boxes = _boxes_of(content, keys, arrays["key_lidar2ego"], arrays["key_ego2global"])
    return FrameIndex(**arrays, **boxes)


def _chosen_samples(content: Content, scenes: Sequence[int]) -> list[int]:
    """Lists the rows of the samples of scenes, sorted by time."""
    wanted = set(scenes)
    found = [i for i, x in enumerate(content.samples) if _scene_row(content, x) in wanted]
    if not found:
        names = [content.scenes[row].name for row in scenes]
        raise NuScenesError(
            f"{content.tables.path('sample')} has no keyframe of the {len(names)} scenes of the "
            f"split, such as {(names or ['none'])[0]}"
        )
    return sorted(found, key=lambda row: content.samples[row].timestamp)


def _scene_row(content: Content, sample: Sample) -> int:
    return content.scene_rows.row(sample.scene_token, Sample.TABLE, sample.token)


def _previous(content: Content, sample: Sample, key_of: dict[int, int]) -> int:
    """Returns the place of the keyframe before, -1 at the start of a scene."""
    if not sample.prev:
        return -1
    row = content.sample_rows.row(sample.prev, Sample.TABLE, sample.token)
    if content.samples[row].scene_token != sample.scene_token:
        raise NuScenesError(
            f"{content.tables.path('sample')}: `prev` of the record {sample.token} is "
            f"{sample.prev}, a keyframe of another scene"
        )
    return key_of[row]


def _sorted_images(content: Content, keys: Sequence[int]) -> list[Image]:
    """Lists the cameras' images of samples, sorted by scene, camera and time."""
    scene_of = {row: _scene_row(content, content.samples[row]) for row in keys}
    found = [x for x in content.images if x.channel != LIDAR and x.sample in scene_of]
    order = {camera: place for place, camera in enumerate(CAMERAS)}
    found.sort(key=lambda x: (scene_of[x.sample], order[x.channel], x.timestamp))
    return found


def _lidars_of(content: Content, keys: Sequence[int]) -> list[Image]:
    lidars = {x.sample: x for x in content.images if x.channel == LIDAR}
    for row in keys:
        if row not in lidars:
            raise NuScenesError(_lacking(content, row, LIDAR))
    return [lidars[row] for row in keys]


def _lacking(content: Content, row: int, channel: str) -> str:
    return (
        f"{content.tables.path('sample_data')} has no keyframe of {channel} of the sample "
        f"{content.samples[row].token}: `check-data --nuscenes` lists all"
    )


def _places(
    content: Content, images: Sequence[Image], keys: Sequence[int], scenes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of keyframes (F, 6), and the first of each scene and camera (S, 6)."""
    places: dict[tuple[int, str], int] = {}
    first: dict[tuple[int, str], int] = {}
    for place, x in enumerate(images):
        scene = _scene_row(content, content.samples[x.sample])
        first.setdefault((scene, x.channel), place)
        if x.is_key:
            places[x.sample, x.channel] = place
    for row in keys:
        for camera in CAMERAS:
            if (row, camera) not in places:
                raise NuScenesError(_lacking(content, row, camera))
    found = [[places[row, camera] for camera in CAMERAS] for row in keys]
    starts = [[first.get((row, camera), -1) for camera in CAMERAS] for row in scenes]
    return np.array(found, dtype=np.int32), np.array(starts, dtype=np.int32)


def _boxes_of(
    content: Content, keys: Sequence[int], lidar2ego: np.ndarray, ego2global: np.ndarray
) -> dict:
    """Makes the arrays of boxes: those of the ten classes that have a point, sorted by keyframe."""
    found = content.annotations
    key_of = np.full(len(content.samples), -1)
    key_of[list(keys)] = np.arange(len(keys))
    keys_of_boxes = key_of[found.sample]
    chosen = np.flatnonzero((keys_of_boxes >= 0) & (found.category >= 0) & (found.points > 0))
    chosen = chosen[np.argsort(keys_of_boxes[chosen], kind="stable")]
    owner = keys_of_boxes[chosen]
    lidar = motions_of(ego2global) @ motions_of(lidar2ego)
    back = np.swapaxes(lidar[:, :3, :3], 1, 2)[owner]  # from the global frame into the lidar's
    offset = found.center[chosen] - lidar[owner, :3, 3]
    heading = back @ rotation_of(found.rotation[chosen])[..., :1]
    velocity = np.concatenate([found.velocity[chosen], np.zeros((len(chosen), 1))], 1)
    parts = [
        (back @ offset[..., None])[..., 0],
        found.size[chosen],
        np.arctan2(heading[:, 1], heading[:, 0]),
        (back @ velocity[..., None])[:, :2, 0],
    ]
    boxes = np.concatenate(parts, 1)
    bad = ~np.isfinite(boxes[:, :7]).all(1) | (boxes[:, 3:6] <= 0).any(1)
    if bad.any():
        raise NuScenesError(
            f"{content.tables.path('sample_annotation')}: {bad.sum()} boxes have a size that is "
            "not positive, or a quaternion or pose that is none, the first is "
            f"{found.tokens[chosen[bad.argmax()]]}: `check-data --nuscenes` lists all"
        )
    return {
        "boxes": boxes,
        "box_class": found.category[chosen].astype(np.uint8),
        "box_points": found.points[chosen],
        "box_tokens": Texts.of(found.tokens[row] for row in chosen),
        "box_ends": np.cumsum(np.bincount(owner, minlength=len(keys))).astype(np.int64),
    }


def _pose(sensor: CalibratedSensor) -> tuple:
    return (*sensor.translation, *sensor.rotation)


def _matrix(content: Content, sensor: CalibratedSensor) -> list:
    if len(sensor.camera_intrinsic) != 3:
        raise NuScenesError(
            f"{content.tables.path('calibrated_sensor')}: the record {sensor.token} is of a camera "
            "and its camera_intrinsic is no matrix of 3 x 3"
        )
    return sensor.camera_intrinsic


def _array(rows: Sequence, columns: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, columns)
