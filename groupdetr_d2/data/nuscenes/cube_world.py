"""Scenes of the generated copy of nuScenes: a vehicle that drives, and cuboids that stand or move.

All is in the global frame, whose ground is the plane z = 0, and in seconds since the first
keyframe. Objects keep their velocity, never overlap, and keep clear of the vehicle.
"""

from dataclasses import dataclass

import numpy as np

from .cube_spec import CubesSpec
from .geometry import YAW, corners_of, motion, quaternion_of_yaw, quaternion_product, rotation_of
from .names import CLASS_OF_CATEGORY, CLASSES

# metres: width, length, height
TYPICAL_SIZE = {
    "car": (1.95, 4.6, 1.7),
    "truck": (2.5, 6.9, 2.8),
    "construction_vehicle": (2.8, 6.4, 3.2),
    "bus": (2.9, 11.0, 3.5),
    "trailer": (2.9, 12.0, 3.9),
    "barrier": (2.5, 0.5, 1.0),
    "motorcycle": (0.8, 2.1, 1.5),
    "bicycle": (0.6, 1.7, 1.3),
    "pedestrian": (0.7, 0.7, 1.8),
    "traffic_cone": (0.4, 0.4, 1.1),
}
# metres per second, least and greatest of those that move
TYPICAL_SPEED = {
    "car": (2.0, 7.0),
    "truck": (2.0, 6.0),
    "construction_vehicle": (1.0, 3.0),
    "bus": (2.0, 6.0),
    "trailer": (2.0, 5.0),
    "motorcycle": (2.0, 7.0),
    "bicycle": (1.5, 5.0),
    "pedestrian": (0.8, 1.8),
}
CLEARANCE = 0.3  # metres between two footprints
TRIES = 40  # places that are tried for an object, before it is left out
TIME_STEP = 0.2  # seconds between the moments at which footprints are compared
# the vehicle's own footprint with room for its cameras, in the shape of a box of the ego frame
EGO_BOX = (1.0, 0.0, 0.0, 3.0, 6.0, 1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class EgoPath:
    """A drive along an arc of constant speed, with slow swings of pitch and roll."""

    start: tuple[float, float]
    heading: float
    speed: float
    turn: float
    tilt: float

    def headings(self, seconds: np.ndarray) -> np.ndarray:
        """Computes the angles (N,) of the vehicle at some times (N,)."""
        return self.heading + self.turn * np.asarray(seconds, dtype=np.float64)

    def translations(self, seconds: np.ndarray) -> np.ndarray:
        """Computes the places (N, 3) of the vehicle at some times (N,)."""
        seconds = np.asarray(seconds, dtype=np.float64)
        half = self.turn * seconds / 2
        chord = self.speed * seconds * np.sinc(half / np.pi)  # of the arc
        x = self.start[0] + chord * np.cos(self.heading + half)
        y = self.start[1] + chord * np.sin(self.heading + half)
        return np.stack([x, y, np.zeros_like(x)], -1)

    def quaternions(self, seconds: np.ndarray) -> np.ndarray:
        """Computes the rotations (N, 4) from the ego frame to the global one."""
        seconds = np.asarray(seconds, dtype=np.float64)
        pitch, roll = self.tilt * np.sin(2 * seconds) / 2, self.tilt * np.cos(3 * seconds) / 2
        zero = np.zeros_like(seconds)
        pitched = np.stack([np.cos(pitch), zero, np.sin(pitch), zero], -1)
        rolled = np.stack([np.cos(roll), np.sin(roll), zero, zero], -1)
        tilted = quaternion_product(pitched, rolled)
        return quaternion_product(quaternion_of_yaw(self.headings(seconds)), tilted)

    def poses(self, seconds: np.ndarray) -> np.ndarray:
        """Computes the motions (N, 4, 4) from the ego frame to the global one."""
        return motion(rotation_of(self.quaternions(seconds)), self.translations(seconds))

    def boxes(self, seconds: np.ndarray) -> np.ndarray:
        """Computes the boxes (N, 9) that the vehicle keeps free of objects."""
        boxes = np.tile(np.array(EGO_BOX), (len(seconds), 1))
        heading, ahead = self.headings(seconds), EGO_BOX[0]
        boxes[:, :3] = self.translations(seconds)
        boxes[:, 0] += ahead * np.cos(heading)
        boxes[:, 1] += ahead * np.sin(heading)
        boxes[:, YAW] = heading
        return boxes


@dataclass(frozen=True)
class Objects:
    """The objects of a scene at its first keyframe.

    Attributes:
        boxes: boxes (T, 9) in the global frame.
        classes: places (T,) in `names.CLASSES`.
        categories: category of each in the tables.
        attributes: attribute of each, "" where the class has none.
    """

    boxes: np.ndarray
    classes: np.ndarray
    categories: list[str]
    attributes: list[str]

    def boxes_at(self, seconds: float) -> np.ndarray:
        """Computes the boxes (T, 9) at a time."""
        boxes = self.boxes.copy()
        boxes[:, :2] += seconds * self.boxes[:, 7:9]
        return boxes

    @property
    def is_moving(self) -> np.ndarray:
        """Tells (T,) of every object whether it moves."""
        return np.abs(self.boxes[:, 7:9]).max(1, initial=0) > 0


@dataclass(frozen=True)
class World:
    """A scene: its name, the vehicle's drive and the objects around it."""

    name: str
    ego: EgoPath
    objects: Objects


def world_of(spec: CubesSpec, number: int) -> World:
    """Draws a scene of a copy; the same number gives the same scene."""
    rng = np.random.default_rng([spec.seed, number])
    ego = EgoPath(
        start=(rng.uniform(200, 1800), rng.uniform(200, 1800)),
        heading=rng.uniform(-np.pi, np.pi),
        speed=rng.uniform(0, spec.ego_speed),
        turn=rng.uniform(-spec.ego_turn, spec.ego_turn),
        tilt=rng.uniform(0, spec.ego_tilt),
    )
    return World(f"cubes-{number:04d}", ego, _random_objects(rng, spec, ego))


def _random_objects(rng: np.random.Generator, spec: CubesSpec, ego: EgoPath) -> Objects:
    """Draws objects one by one, the large ones first, where they hit nothing at any time."""
    names = list(CLASSES) * (spec.objects // len(CLASSES))
    names += [str(name) for name in rng.permutation(CLASSES)[: spec.objects % len(CLASSES)]]
    names.sort(key=lambda name: -TYPICAL_SIZE[name][1])
    seconds = np.arange(-TIME_STEP, spec.seconds + TIME_STEP, TIME_STEP)
    taken = [_footprints(ego.boxes(seconds))]
    boxes, kept = [], []
    for name in names:
        for _ in range(TRIES):
            box = _random_box(rng, spec, name, ego)
            footprints = _footprints(_course(box, seconds))
            if are_apart(footprints, np.stack(taken)):
                taken.append(footprints)
                boxes.append(box)
                kept.append(name)
                break
    found = np.array(boxes).reshape(-1, 9)
    return Objects(
        boxes=found,
        classes=np.array([CLASSES.index(name) for name in kept], dtype=np.int64),
        categories=[_random_category(rng, name) for name in kept],
        attributes=[_attribute_of(rng, *pair) for pair in zip(kept, found, strict=True)],
    )


def _random_box(rng: np.random.Generator, spec: CubesSpec, name: str, ego: EgoPath) -> np.ndarray:
    """Draws a box (9,) at time zero that is at the wanted distance at a random time."""
    size = np.array(TYPICAL_SIZE[name]) * np.exp(rng.normal(0, spec.size_noise, 3))
    angle, yaw = rng.uniform(-np.pi, np.pi, 2)
    near, moment = spec.near + size[1] / 2, spec.seconds * rng.random()
    distance = rng.uniform(near, max(near, spec.far))
    speed = 0.0
    if name in TYPICAL_SPEED and rng.random() < spec.moving:
        speed = spec.speed * rng.uniform(*TYPICAL_SPEED[name])
    velocity = speed * np.array([np.cos(yaw), np.sin(yaw)])
    around = ego.translations(np.array([moment]))[0, :2]
    place = around + distance * np.array([np.cos(angle), np.sin(angle)]) - moment * velocity
    return np.array([*place, size[2] / 2, *size, yaw, *velocity])


def _course(box: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Computes the boxes (N, 9) of one object at some times (N,)."""
    boxes = np.tile(box, (len(seconds), 1))
    boxes[:, :2] += seconds[:, None] * box[7:9]
    return boxes


def _footprints(boxes: np.ndarray) -> np.ndarray:
    """Computes the corners (N, 4, 2) on the ground, one after the other around a box."""
    return corners_of(boxes)[:, [0, 1, 5, 4], :2]


def are_apart(footprints: np.ndarray, others: np.ndarray) -> bool:
    """Tells whether an object keeps its distance from all others at all times.

    Two rectangles are apart if and only if they are along a side of one of them.

    Args:
        footprints: corners (N, 4, 2) of an object at N times.
        others: corners (M, N, 4, 2) of others at the same times.
    """
    own = np.broadcast_to(footprints, others.shape)
    sides = [corners[..., 1:3, :] - corners[..., 0:2, :] for corners in (own, others)]
    axes = np.concatenate(sides, -2)
    axes = axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    a = own @ np.swapaxes(axes, -1, -2)  # (M, N, 4 corners, 4 axes)
    b = others @ np.swapaxes(axes, -1, -2)
    gaps = np.maximum(a.min(-2) - b.max(-2), b.min(-2) - a.max(-2))
    return bool((gaps.max(-1) > CLEARANCE).all())


def _random_category(rng: np.random.Generator, name: str) -> str:
    categories = [category for category, known in CLASS_OF_CATEGORY.items() if known == name]
    return categories[int(rng.integers(len(categories)))]


def _attribute_of(rng: np.random.Generator, name: str, box: np.ndarray) -> str:
    """Names the attribute that is true of an object; some of the standing vehicles only stop."""
    is_moving = bool(np.abs(box[7:9]).max() > 0)
    if name in ("barrier", "traffic_cone"):
        return ""
    if name == "pedestrian":
        return "pedestrian.moving" if is_moving else "pedestrian.standing"
    if name in ("bicycle", "motorcycle"):
        return "cycle.with_rider" if is_moving else "cycle.without_rider"
    stops = name == "bus" or rng.random() < 0.2
    return "vehicle.moving" if is_moving else "vehicle.stopped" if stops else "vehicle.parked"
