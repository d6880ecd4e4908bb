"""The 13 tables of the generated copy of nuScenes, with the fields of the real ones."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .cube_rig import LIDAR, Sensor, Shot
from .cube_spec import KEYFRAME_INTERVAL, CubesSpec
from .cube_world import World
from .geometry import YAW, quaternion_of_yaw
from .names import CAMERAS, CLASS_OF_CATEGORY

VEHICLE = "cubes"
MAP_FILE = "maps/cubes.png"
EPOCH = 1_530_000_000_000_000  # microseconds at which the first scene begins
SCENE_DISTANCE = 60_000_000  # microseconds from the beginning of a scene to that of the next
ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked"),
    *("cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving"),
)
# lower bounds in percent of the levels of visibility "1".."4"
_VISIBILITY = (0, 40, 60, 80)


def token_of(*parts: object) -> str:
    """Makes a token of 32 hexadecimal digits, the same for the same parts."""
    return hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Sightings:
    """The pixels of every object at every keyframe, over all cameras.

    Attributes:
        visible: pixels (K, T) at which an object is seen.
        covered: pixels (K, T) that it would fill without the others.
    """

    visible: np.ndarray
    covered: np.ndarray

    def points(self, min_pixels: int) -> np.ndarray:
        """Computes the lidar points (K, T): visible pixels, 0 where there are too few."""
        return np.where(self.visible >= min_pixels, self.visible, 0)

    def levels(self) -> np.ndarray:
        """Computes levels of visibility (K, T), 1..4."""
        percent = 100 * self.visible / np.maximum(self.covered, 1)
        return np.searchsorted(np.array(_VISIBILITY), percent, side="right")


@dataclass
class CubesTables:
    """Collects the records of all tables; a scene is added when it has been rendered."""

    spec: CubesSpec
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Writes the tables that do not depend on the scenes."""
        self.records = {
            "category": [
                {"token": token_of("category", name), "name": name, "description": kind}
                for name, kind in CLASS_OF_CATEGORY.items()
            ],
            "attribute": [
                {"token": token_of("attribute", name), "name": name, "description": ""}
                for name in ATTRIBUTES
            ],
            "visibility": [
                {
                    "token": str(number),
                    "level": f"v{low}-{high}",
                    "description": f"between {low} and {high} percent of the object is visible",
                }
                for number, (low, high) in enumerate(pairwise([*_VISIBILITY, 100]), start=1)
            ],
            "sensor": [
                {
                    "token": token_of("sensor", channel),
                    "channel": channel,
                    "modality": "lidar" if channel == LIDAR else "camera",
                }
                for channel in (*CAMERAS, LIDAR)
            ],
            "map": [
                {
                    "token": token_of("map"),
                    "log_tokens": [],
                    "category": "semantic_prior",
                    "filename": MAP_FILE,
                }
            ],
        }
        for name in ("log", "scene", "sample", "calibrated_sensor", "ego_pose", "sample_data"):
            self.records[name] = []
        for name in ("instance", "sample_annotation"):
            self.records[name] = []

    def add_scene(
        self,
        number: int,
        world: World,
        rig: dict[str, Sensor],
        shots: dict[str, list[Shot]],
        sightings: Sightings,
    ) -> None:
        """Adds the records of a scene, which is the number-th one."""
        begin = begin_of(number)
        samples = [token_of(world.name, "sample", k) for k in range(self.spec.keyframes)]
        self._add_scene_records(world, begin, samples)
        self._add_sensors(world, begin, rig, shots, samples)
        self._add_objects(world, samples, sightings)

    def write(self, folder: Path) -> None:
        """Writes the tables and the splits into a folder."""
        folder.mkdir(parents=True)
        for name, records in self.records.items():
            (folder / f"{name}.json").write_text(json.dumps(records))
        (folder / "splits.json").write_text(json.dumps(self.spec.scene_names()))

    def _add_scene_records(self, world: World, begin: int, samples: list[str]) -> None:
        log, scene = token_of(world.name, "log"), token_of(world.name, "scene")
        self.records["map"][0]["log_tokens"].append(log)
        self.records["log"].append(
            {
                "token": log,
                "logfile": logfile_of(world),
                "vehicle": VEHICLE,
                "date_captured": datetime.fromtimestamp(begin / 1e6, timezone.utc)
                .date()
                .isoformat(),
                "location": "cubes",
            }
        )
        self.records["scene"].append(
            {
                "token": scene,
                "log_token": log,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": world.name,
                "description": f"{len(world.objects.boxes)} cuboids",
            }
        )
        self.records["sample"].extend(
            {
                "token": token,
                "timestamp": begin + k * KEYFRAME_INTERVAL,
                "scene_token": scene,
                **_neighbours(samples, k),
            }
            for k, token in enumerate(samples)
        )

    def _add_sensors(
        self,
        world: World,
        begin: int,
        rig: dict[str, Sensor],
        shots: dict[str, list[Shot]],
        samples: list[str],
    ) -> None:
        for channel, sensor in rig.items():
            calibration = token_of(world.name, "calibrated_sensor", channel)
            self.records["calibrated_sensor"].append(
                {
                    "token": calibration,
                    "sensor_token": token_of("sensor", channel),
                    "translation": sensor.translation.tolist(),
                    "rotation": sensor.quaternion.tolist(),
                    "camera_intrinsic": sensor.intrinsic.tolist(),
                }
            )
            tokens = [token_of(world.name, channel, shot.offset) for shot in shots[channel]]
            for i, (token, shot) in enumerate(zip(tokens, shots[channel], strict=True)):
                self._add_pose(world, token, begin, shot)
                self.records["sample_data"].append(
                    {
                        "token": token,
                        "sample_token": samples[shot.keyframe],
                        "ego_pose_token": token,  # as the real tables have it
                        "calibrated_sensor_token": calibration,
                        "timestamp": begin + shot.offset,
                        "fileformat": "pcd" if channel == LIDAR else "jpg",
                        "is_key_frame": shot.is_key,
                        "height": 0 if channel == LIDAR else self.spec.height,
                        "width": 0 if channel == LIDAR else self.spec.width,
                        "filename": file_of(world, begin, shot),
                        **_neighbours(tokens, i),
                    }
                )

    def _add_pose(self, world: World, token: str, begin: int, shot: Shot) -> None:
        seconds = np.array([shot.offset / 1e6])
        self.records["ego_pose"].append(
            {
                "token": token,
                "timestamp": begin + shot.offset,
                "rotation": world.ego.quaternions(seconds)[0].tolist(),
                "translation": world.ego.translations(seconds)[0].tolist(),
            }
        )

    def _add_objects(self, world: World, samples: list[str], sightings: Sightings) -> None:
        points, levels = sightings.points(self.spec.min_pixels), sightings.levels()
        boxes = [world.objects.boxes_at(k * KEYFRAME_INTERVAL / 1e6) for k in range(len(samples))]
        for i, category in enumerate(world.objects.categories):
            instance = token_of(world.name, "instance", i)
            tokens = [token_of(world.name, "sample_annotation", i, k) for k in range(len(samples))]
            attribute = world.objects.attributes[i]
            self.records["instance"].append(
                {
                    "token": instance,
                    "category_token": token_of("category", category),
                    "nbr_annotations": len(samples),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )
            for k, token in enumerate(tokens):
                box = boxes[k][i]
                self.records["sample_annotation"].append(
                    {
                        "token": token,
                        "sample_token": samples[k],
                        "instance_token": instance,
                        "visibility_token": str(levels[k, i]),
                        "attribute_tokens": [token_of("attribute", attribute)] * bool(attribute),
                        "translation": box[:3].tolist(),
                        "size": box[3:6].tolist(),
                        "rotation": quaternion_of_yaw(box[YAW]).tolist(),
                        "num_lidar_pts": int(points[k, i]),
                        "num_radar_pts": 0,
                        **_neighbours(tokens, k),
                    }
                )


def begin_of(number: int) -> int:
    """The time of the first keyframe of the number-th scene, in microseconds."""
    return EPOCH + number * SCENE_DISTANCE


def logfile_of(world: World) -> str:
    """The name of the drive that a scene belongs to; every scene has its own."""
    return f"{VEHICLE}-{world.name}"


def file_of(world: World, begin: int, shot: Shot) -> str:
    """The file of a shot, relative to the copy, as the real files are named."""
    kind = "samples" if shot.is_key else "sweeps"
    ending = "pcd.bin" if shot.channel == LIDAR else "jpg"
    name = f"{logfile_of(world)}__{shot.channel}__{begin + shot.offset}.{ending}"
    return f"{kind}/{shot.channel}/{name}"


def _neighbours(tokens: Sequence[str], place: int) -> dict[str, str]:
    """The fields that link a record to those before and after it, "" at the ends."""
    return {
        "prev": tokens[place - 1] if place else "",
        "next": tokens[place + 1] if place + 1 < len(tokens) else "",
    }
