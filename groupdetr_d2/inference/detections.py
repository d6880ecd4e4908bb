"""The detections on an image or in a keyframe, and their files."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.structures import Instances

from ..data.nuscenes.geometry import moved_boxes
from ..errors import UserError
from ..tasks.task import Task


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

    def __len__(self) -> int:
        return len(self.instances)

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
