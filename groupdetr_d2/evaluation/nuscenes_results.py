"""Detections as nuScenes' result file has them, and what such a file says beside the truth.

A detection of a model is a box of nine numbers in the frame of the keyframe's lidar. The file holds
boxes in the global frame, with a full rotation, a velocity and an attribute. See
https://www.nuscenes.org/object-detection for the format.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from detectron2.structures import Instances

from ..data.nuscenes.geometry import (
    YAW,
    inverse,
    moved_boxes,
    moved_points,
    quaternion_of,
    quaternion_of_yaw,
    quaternion_product,
    rotation_of,
)
from ..data.nuscenes.names import CLASS_RANGE, CLASSES
from ..errors import UserError
from .detection_curves import ImageResult
from .frame_picture import FramePicture

MOST_BOXES = 500  # that the benchmark accepts in a keyframe
MOVING = 0.2  # metres per second; whoever is slower stands
NO_OVERLAP = 4.0  # metres between centres
SMALLEST_SIZE = 1e-3  # metres; the benchmark takes no size of 0
SMALLEST_SCORE = float(np.finfo(np.float32).tiny)
RANGES = np.array([CLASS_RANGE[name] for name in CLASSES])

WHEN_MOVING = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), "vehicle.moving"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}
WHEN_STANDING = {
    **dict.fromkeys(("car", "truck", "trailer", "construction_vehicle"), "vehicle.parked"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.without_rider"),
    "bus": "vehicle.stopped",
    "pedestrian": "pedestrian.standing",
}


def attribute_of(name: str, speed: float) -> str:
    """Chooses the attribute of an object by its class and its speed in metres per second.

    Models of PETR predict none; the rule is that of the official code. Barriers and traffic cones
    have no attribute, which is an empty text.
    """
    return (WHEN_MOVING if speed > MOVING else WHEN_STANDING).get(name, "")


@dataclass(frozen=True)
class FrameBoxes:
    """The detections of one keyframe, in the frame of its lidar."""

    token: str  # of the sample
    boxes: np.ndarray  # (M, 9)
    scores: np.ndarray  # (M,)
    classes: np.ndarray  # (M,) int, places in CLASSES
    lidar2ego: np.ndarray  # (4, 4)
    ego2global: np.ndarray  # (4, 4), the pose at the time of the lidar

    @property
    def lidar2global(self) -> np.ndarray:
        """The motion (4, 4) from the lidar's frame to the global one."""
        return self.ego2global @ self.lidar2ego

    def __getitem__(self, chosen: np.ndarray) -> "FrameBoxes":
        """Returns the detections of these places, or of a mask (M,) bool."""
        own = (self.boxes[chosen], self.scores[chosen], self.classes[chosen])
        return FrameBoxes(self.token, *own, self.lidar2ego, self.ego2global)


def accepted(frame: FrameBoxes) -> FrameBoxes:
    """Returns the detections that the benchmark takes, best first.

    Those go that are beyond the range of their class around the vehicle, that are not finite (an
    unknown velocity may stay), and that come after the 500 best. Scores of 0, with which the
    benchmark finds no true positive, become tiny; so do sizes that are not positive.
    """
    boxes = frame.boxes.copy()
    boxes[:, 3:6] = np.maximum(boxes[:, 3:6], SMALLEST_SIZE)
    scores = np.maximum(frame.scores, SMALLEST_SCORE)
    own = FrameBoxes(frame.token, boxes, scores, frame.classes, frame.lidar2ego, frame.ego2global)
    finite = np.isfinite(boxes[:, : YAW + 1]).all(1) & np.isfinite(scores)
    own = own[finite]
    own = own[in_range(own.boxes, own.classes, own.lidar2ego)]
    return own[np.argsort(-own.scores, kind="stable")[:MOST_BOXES]]


def in_range(boxes: np.ndarray, classes: np.ndarray, lidar2ego: np.ndarray) -> np.ndarray:
    """Tells which boxes (M, 9) are so near the vehicle that the benchmark counts them, (M,)."""
    centres = moved_points(boxes[:, :3], lidar2ego)
    return np.hypot(centres[:, 0], centres[:, 1]) < RANGES[classes]


def records_of(frame: FrameBoxes) -> list[dict]:
    """Makes the records of a result file from boxes of the lidar's frame; unknown velocity is 0."""
    moves = frame.lidar2global
    moved = moved_boxes(frame.boxes, moves)
    velocities = np.nan_to_num(moved[:, 7:9], nan=0.0, posinf=0.0, neginf=0.0)
    yaws = quaternion_of_yaw(frame.boxes[:, YAW])
    columns = (
        moved[:, :3],
        moved[:, 3:6],
        quaternion_product(quaternion_of(moves[:3, :3]), yaws),
        velocities,
        frame.scores,
        np.hypot(velocities[:, 0], velocities[:, 1]),
        frame.classes,
    )
    return [
        {
            "sample_token": frame.token,
            "translation": translation,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": CLASSES[category],
            "detection_score": score,
            "attribute_name": attribute_of(CLASSES[category], speed),
        }
        for translation, size, rotation, velocity, score, speed, category in zip(
            *(np.asarray(column).tolist() for column in columns), strict=True
        )
    ]


class Record(msgspec.Struct, gc=False):
    """A detection of a result file; its attribute is not read."""

    translation: tuple[float, float, float]
    size: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    velocity: tuple[float, float]
    detection_name: str
    detection_score: float


class _ResultFile(msgspec.Struct):
    results: dict[str, list[Record]]


def lidar_boxes(
    translation: np.ndarray,
    size: np.ndarray,
    rotation: np.ndarray,
    velocity: np.ndarray,
    *,
    lidar2global: np.ndarray,
) -> np.ndarray:
    """Makes boxes (M, 9) of the lidar's frame from boxes of the global frame.

    Args:
        translation: (M, 3) centres.
        size: (M, 3) width, length, height.
        rotation: (M, 4) quaternions, w first.
        velocity: (M, 2) along x and y.
        lidar2global: (4, 4).
    """
    back = inverse(lidar2global)
    heading = (back[:3, :3] @ rotation_of(rotation))[..., 0]  # the x axis of each box
    yaw = np.arctan2(heading[:, 1], heading[:, 0])[:, None]
    made = moved_boxes(np.concatenate([translation, size, 0 * yaw, velocity], 1), back)
    made[:, YAW] = yaw[:, 0]
    return made


def read_nuscenes_results(dataset: str, results_file: Path) -> list[ImageResult]:
    """Reads a result file beside the ground truth of a registered set, keyframe by keyframe.

    Detections are matched by the distance d of the centres on the ground, as the benchmark matches
    them: the overlap is max(0, 1 - d / 4 m), so that 0.5, at which a detection is an object's, is 2
    metres. Objects beyond the range of their class are left out, as the benchmark does.

    Raises:
        UserError: when the file is not a result file, or lacks a keyframe or has an unknown class.
    """
    from ..data.nuscenes.catalog import frames_of

    return results_beside(frames_of(dataset), results_file)


def results_beside(frames: Sequence[dict], results_file: Path) -> list[ImageResult]:
    """Reads a result file beside these keyframes; see :func:`read_nuscenes_results`."""
    try:
        found = msgspec.json.decode(results_file.read_bytes(), type=_ResultFile).results
    except (msgspec.DecodeError, OSError) as error:
        raise UserError(
            f"{results_file} is not a result file of nuScenes ({error}); evaluate again"
        ) from error
    results = []
    for frame in frames:
        token = frame["sample_token"]
        if token not in found:
            raise UserError(
                f"{results_file} lacks keyframe {token}: it is of another split; evaluate again"
            )
        results.append(_image_result(frame, found[token], results_file))
    return results


def overlaps_of(centres: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes overlaps (M, T) in [0, 1] of centres (M, 2+) and (T, 2+) in metres.

    They fall from 1 at the same place on the ground over 0.5 at 2 metres to 0 at 4 metres.
    """
    distance = np.linalg.norm(centres[:, None, :2] - others[None, :, :2], axis=2)
    return np.maximum(0, 1 - distance / NO_OVERLAP).astype(np.float32)


def _image_result(frame: dict, records: list[Record], source: Path) -> ImageResult:
    records = sorted(records, key=lambda record: -record.detection_score)
    lidar2ego, size = np.asarray(frame["lidar2ego"]), (frame["height"], frame["width"])
    moves = np.asarray(frame["ego2global"]) @ lidar2ego
    annotations = frame["annotations"]
    boxes = np.array([a["box"] for a in annotations], dtype=np.float64).reshape(-1, 9)
    true_classes = np.array([a["category_id"] for a in annotations], dtype=int)
    counts = in_range(boxes, true_classes, lidar2ego)
    boxes, true_classes = boxes[counts], true_classes[counts]
    centres = np.array([record.translation for record in records]).reshape(-1, 3)
    classes = _classes_of(records, source)
    scores = np.array([record.detection_score for record in records], dtype=np.float64)

    def truth() -> Instances:
        values = torch.from_numpy(boxes).float()
        return Instances(size, gt_boxes3d=values, gt_classes=torch.from_numpy(true_classes))

    return ImageResult(
        name=frame["file_name"],
        true_classes=true_classes,
        crowd=np.zeros(len(boxes), dtype=bool),
        classes=classes,
        scores=scores,
        overlaps=overlaps_of(centres, moved_points(boxes[:, :3], moves)),
        truth=truth,
        found=_found_later(records, scores, classes, moves, size),
        picture=partial(FramePicture.of_record, frame),
    )


def _classes_of(records: list[Record], source: Path) -> np.ndarray:
    unknown = {record.detection_name for record in records} - set(CLASSES)
    if unknown:
        raise UserError(
            f"{source} has class {min(unknown)!r}, which is none of nuScenes' ten; evaluate again"
        )
    return np.array([CLASSES.index(record.detection_name) for record in records], dtype=int)


def _found_later(
    records: list[Record],
    scores: np.ndarray,
    classes: np.ndarray,
    lidar2global: np.ndarray,
    size: tuple[int, int],
) -> Callable[[], Instances]:
    """Makes a function that makes the detections of a keyframe, in the lidar's frame."""

    def found() -> Instances:
        fields = ("translation", "size", "rotation", "velocity")
        widths = (3, 3, 4, 2)
        columns = (
            np.array([getattr(record, field) for record in records]).reshape(-1, width)
            for field, width in zip(fields, widths, strict=True)
        )
        return Instances(
            size,
            pred_boxes3d=torch.from_numpy(lidar_boxes(*columns, lidar2global=lidar2global)).float(),
            scores=torch.from_numpy(scores),
            pred_classes=torch.from_numpy(classes),
        )

    return found
