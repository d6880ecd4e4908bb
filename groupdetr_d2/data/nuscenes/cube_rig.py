"""The sensors of the generated copy of nuScenes, and the moments at which they fire."""

from dataclasses import dataclass

import numpy as np

from .cube_spec import KEYFRAME_INTERVAL, CubesSpec
from .geometry import motion, quaternion_of, quaternion_of_yaw, rotation_of
from .names import CAMERAS

LIDAR = "LIDAR_TOP"
FULL_WIDTH = 1600  # pixels of a real image, to which the focal lengths below belong
# degrees to the left of straight ahead, place in the ego frame in metres, focal length in pixels,
# microseconds before the lidar
_CAMERAS = {
    "CAM_FRONT": (0, (1.7, 0.0, 1.5), 1260, 35_000),
    "CAM_FRONT_RIGHT": (-55, (1.55, -0.5, 1.5), 1260, 27_000),
    "CAM_FRONT_LEFT": (55, (1.55, 0.5, 1.5), 1260, 43_000),
    "CAM_BACK": (180, (0.0, 0.0, 1.57), 809, 10_000),
    "CAM_BACK_LEFT": (110, (1.0, 0.5, 1.57), 1260, 1_000),
    "CAM_BACK_RIGHT": (-110, (1.0, -0.5, 1.57), 1260, 19_000),
}
_LIDAR_PLACE = (0.94, 0.0, 1.84)
JITTER = 0.01  # radians by which cameras of two scenes differ


@dataclass(frozen=True)
class Sensor:
    """A calibrated sensor: where it is in the ego frame, and a camera's intrinsics.

    Intrinsics are (3, 3); those of a lidar are empty, as in the tables.
    """

    channel: str
    translation: np.ndarray
    quaternion: np.ndarray
    intrinsic: np.ndarray

    @property
    def to_ego(self) -> np.ndarray:
        """The motion (4, 4) from the sensor's frame to the ego frame."""
        return motion(rotation_of(self.quaternion), self.translation)


@dataclass(frozen=True)
class Shot:
    """A moment at which a sensor fires.

    Attributes:
        channel: the sensor.
        keyframe: the keyframe that it belongs to; a sweep belongs to the one after it.
        is_key: whether it is the keyframe's own.
        offset: microseconds since the first keyframe.
    """

    channel: str
    keyframe: int
    is_key: bool
    offset: int


def rig_of(spec: CubesSpec, rng: np.random.Generator) -> dict[str, Sensor]:
    """Draws the sensors of a scene; cameras are turned a little from scene to scene."""
    sensors = {}
    for channel in CAMERAS:
        degrees, place, focal, _ = _CAMERAS[channel]
        yaw = np.deg2rad(degrees) + rng.uniform(-JITTER, JITTER)
        right, forward = (np.sin(yaw), -np.cos(yaw), 0.0), (np.cos(yaw), np.sin(yaw), 0.0)
        rotation = np.stack([right, (0.0, 0.0, -1.0), forward], 1)
        scaled = focal * spec.width / FULL_WIDTH
        intrinsic = np.array(
            [[scaled, 0, spec.width / 2], [0, scaled, spec.height / 2], [0, 0, 1]], dtype=np.float64
        )
        sensors[channel] = Sensor(channel, np.array(place), quaternion_of(rotation), intrinsic)
    turned = quaternion_of_yaw(np.array(-np.pi / 2))
    sensors[LIDAR] = Sensor(LIDAR, np.array(_LIDAR_PLACE), turned, np.zeros(0))
    return sensors


def shots_of(spec: CubesSpec) -> dict[str, list[Shot]]:
    """Lists the moments of every sensor in the order of time; the lidar fires at keyframes."""
    shots = {LIDAR: [Shot(LIDAR, k, True, k * KEYFRAME_INTERVAL) for k in range(spec.keyframes)]}
    frames = spec.sweeps + 1  # from one keyframe to the next
    for channel in CAMERAS:
        shots[channel] = [
            Shot(
                channel=channel,
                keyframe=-(-i // frames),
                is_key=i % frames == 0,
                offset=round(i * KEYFRAME_INTERVAL / frames) - _CAMERAS[channel][3],
            )
            for i in range((spec.keyframes - 1) * frames + 1)
        ]
    return shots
