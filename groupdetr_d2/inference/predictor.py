"""The predictor: a checkpoint and an image or a keyframe in, detections and a picture out."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
import torch
from detectron2.structures import Instances

from ..checkpoint.restoring import restore
from ..data.nuscenes.geometry import moved_boxes
from ..errors import UserError
from ..modeling.meta_arch import task_of
from ..tasks.task import Task
from .augmented import build_evaluated_model
from .by_group import detections_of_group

DEFAULT_THRESHOLD = 0.5  # of scores, where no evaluation has found a better one


@dataclass
class Detections:
    """The detections on one image, or in one keyframe.

    Attributes:
        image: what is drawn on: (H, W, 3) BGR, or the FramePicture of a keyframe.
        instances: with scores, pred_classes and what the task predicts; on the CPU.
        names: of the classes.
        about: what the model's input says besides its images, such as "sample_token", "lidar2ego"
            and "ego2global" of a keyframe.
    """

    image: Any
    instances: Instances
    names: list[str]
    task: Task
    about: dict = field(default_factory=dict)

    def records(self) -> list[dict]:
        """Lists the detections as plain values, best first; see the task's `records`."""
        return self.task.records(self.instances, self.names)

    def draw(self) -> np.ndarray:
        """Draws the detections on a copy of the image, (H, W, 3) BGR."""
        return self.task.draw(self.image, self.instances, self.names)

    def save(self, path: str | Path) -> None:
        """Writes the picture to a file, see :func:`write_picture`."""
        write_picture(Path(path), self.draw())

    def boxes_in(self, frame: str) -> np.ndarray:
        """Returns the boxes (M, 9) of a keyframe in another frame of reference.

        Args:
            frame: "lidar", in which the records are, "ego" of the vehicle, or "global".

        Raises:
            UserError: the model finds no boxes in space, or there is no such frame.
        """
        if not self.instances.has("pred_boxes3d"):
            raise UserError("only models of several cameras find boxes in space")
        lidar2ego, ego2global = (np.asarray(self.about[k]) for k in ("lidar2ego", "ego2global"))
        moves = {"lidar": np.eye(4), "ego": lidar2ego, "global": ego2global @ lidar2ego}
        if frame not in moves:
            raise UserError(f"{frame!r} is no frame of reference; it can be {', '.join(moves)}")
        return moved_boxes(self.instances.pred_boxes3d.double().numpy(), moves[frame])


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes an image (H, W, 3) BGR to a file, whose folder is made.

    Raises:
        UserError: no picture can be written under that name.
        OSError: the disk is full, or there is no permission.
    """
    try:
        is_encoded, content = cv2.imencode(path.suffix, picture)
    except cv2.error:
        is_encoded = False
    if not is_encoded:
        raise UserError(f"{path} cannot be written: is it a name such as seen.jpg?")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.tobytes())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under another name first, so that it is whole or not there."""
    unfinished = path.with_name(f".{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


class Predictor:
    """A trained model, ready for single images, or for keyframes if it sees several cameras.

    Args:
        weights: a checkpoint of this package; it carries its configuration and class names.
        threshold: detections with a lower score are left out; if not given, the one that had the
            best F1 in the training's last evaluation, or 0.5 before any.
        opts: overrides of the configuration, ``["KEY", value, ...]``; with ``["TEST.AUG.ENABLED",
            True]`` every image is seen in several sizes and flipped.

    Attributes:
        prepare: what a user gives -> what is drawn on and the model's input.

    Raises:
        CheckpointError: the file is none of this package's checkpoints.
    """

    def __init__(
        self, weights: str | Path, *, threshold: float | None = None, opts: list | None = None
    ):
        restored = restore(weights, opts or [])
        known = restored.threshold if threshold is None else check_threshold(threshold)
        self.threshold = DEFAULT_THRESHOLD if known is None else known
        self.cfg, self.model, self.names = restored.cfg, restored.model, restored.classes
        self.task = task_of(self.cfg)
        self.detector = build_evaluated_model(self.cfg, self.model).eval()
        self.prepare = self.task.build_reader(self.cfg)

    @overload
    def __call__(
        self,
        image: str | Path | np.ndarray | dict,
        *,
        threshold: float | None = None,
        group: int | None = None,
    ) -> Detections: ...
    @overload
    def __call__(
        self, image: Sequence, *, threshold: float | None = None, group: int | None = None
    ) -> list[Detections]: ...

    @torch.no_grad()
    def __call__(
        self,
        image: str | Path | np.ndarray | dict | Sequence,
        *,
        threshold: float | None = None,
        group: int | None = None,
    ) -> Detections | list[Detections]:
        """Detects on a file, an array, a keyframe or a list of them.

        Args:
            image: a path; an array (H, W, 3) BGR, (H, W, 4) BGRA or (H, W) grey, of bytes or of
                numbers of any range, which `eight_bits` makes bytes of; for a model of several
                cameras the record of a keyframe, `NuScenesFrames[i]`; or a list of such.
            threshold: in place of the predictor's own.
            group: the group of queries to detect with, 0 .. K-1; the primary one if not given.

        Raises:
            ImageReadError: the file cannot be read, or the array is no image.
            UserError: the model has no such group, or sees something else.
        """
        if isinstance(image, Sequence) and not isinstance(image, (str, bytes)):
            return [self(x, threshold=threshold, group=group) for x in image]
        picture, inputs = self.prepare(image)
        if group is None:
            found = self.detector([inputs])[0]["instances"].to("cpu")
        else:
            found = self._detect_with(group, inputs)
        lowest = self.threshold if threshold is None else check_threshold(threshold)
        about = {key: x for key, x in inputs.items() if key not in ("image", "original")}
        return Detections(picture, found[found.scores >= lowest], self.names, self.task, about)

    def _detect_with(self, group: int, inputs: dict) -> Instances:
        groups = self.model.groups.separate()
        numbers = groups.numbers()
        if group not in numbers:
            raise UserError(f"group {group} does not exist: the model has 0 .. {numbers[-1]}")
        predictions = self.model.predict([inputs], groups)
        return detections_of_group(self.model, predictions, groups, inputs, group)


def check_threshold(threshold: float) -> float:
    """Checks that a threshold of scores is a number; scores are 0 to 1.

    Raises:
        UserError: it is none.
    """
    if not math.isfinite(threshold):
        raise UserError(f"the threshold is {threshold}; it can be 0 to 1")
    return threshold
