"""The predictor: a checkpoint and an image in, detections and a picture out."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import torch
from detectron2.structures import Instances

from ..checkpoint.restoring import restore
from ..data.image_file import ImageReadError, as_bgr, channels_first, read_bgr
from ..data.resize import ResizeShortestSide
from ..errors import UserError
from ..modeling.meta_arch import task_of
from ..tasks.task import Task
from .augmented import build_evaluated_model
from .by_group import detections_of_group

DEFAULT_THRESHOLD = 0.5  # of scores, where no evaluation has found a better one


@dataclass
class Detections:
    """The detections on one image."""

    image: np.ndarray  # (H, W, 3) BGR
    instances: Instances  # with scores, pred_classes and what the task predicts; on the CPU
    names: list[str]  # of the classes
    task: Task

    def records(self) -> list[dict]:
        """Lists the detections as plain values, best first; see the task's `records`."""
        return self.task.records(self.instances, self.names)

    def draw(self) -> np.ndarray:
        """Draws the detections on a copy of the image, (H, W, 3) BGR."""
        return self.task.draw(self.image, self.instances, self.names)

    def save(self, path: str | Path) -> None:
        """Writes the picture to a file.

        Raises:
            UserError: no picture can be written under that name.
            OSError: the disk is full, or there is no permission.
        """
        try:
            is_encoded, content = cv2.imencode(Path(path).suffix, self.draw())
        except cv2.error:
            is_encoded = False
        if not is_encoded:
            raise UserError(f"{path} cannot be written: is it a name such as seen.jpg?")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), content.tobytes())


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
    """A trained model, ready for single images.

    Args:
        weights: a checkpoint of this package; it carries its configuration and class names.
        threshold: detections with a lower score are left out; if not given, the one that had the
            best F1 in the training's last evaluation, or 0.5 before any.
        opts: overrides of the configuration, ``["KEY", value, ...]``; with ``["TEST.AUG.ENABLED",
            True]`` every image is seen in several sizes and flipped.

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
        sizes = (self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        self.resize = ResizeShortestSide(*sizes)

    @overload
    def __call__(
        self,
        image: str | Path | np.ndarray,
        *,
        threshold: float | None = None,
        group: int | None = None,
    ) -> Detections: ...
    @overload
    def __call__(
        self, image: list, *, threshold: float | None = None, group: int | None = None
    ) -> list[Detections]: ...

    @torch.no_grad()
    def __call__(
        self,
        image: str | Path | np.ndarray | list,
        *,
        threshold: float | None = None,
        group: int | None = None,
    ) -> Detections | list[Detections]:
        """Detects on a file, an array or a list of them.

        Args:
            image: a path; an array (H, W, 3) BGR, (H, W, 4) BGRA or (H, W) grey, of bytes or of
                numbers of any range, which `eight_bits` makes bytes of; or a list of such.
            threshold: in place of the predictor's own.
            group: the group of queries to detect with, 0 .. K-1; the primary one if not given.

        Raises:
            ImageReadError: the file cannot be read, or the array is no image.
            UserError: the model has no such group.
        """
        if isinstance(image, (list, tuple)):
            return [self(x, threshold=threshold, group=group) for x in image]
        picture, inputs = self.prepare(image)
        if group is None:
            found = self.detector([inputs])[0]["instances"].to("cpu")
        else:
            found = self._detect_with(group, inputs)
        lowest = self.threshold if threshold is None else check_threshold(threshold)
        return Detections(picture, found[found.scores >= lowest], self.names, self.task)

    def _detect_with(self, group: int, inputs: dict) -> Instances:
        groups = self.model.groups.separate()
        numbers = groups.numbers()
        if group not in numbers:
            raise UserError(f"group {group} does not exist: the model has 0 .. {numbers[-1]}")
        predictions = self.model.predict([inputs], groups)
        return detections_of_group(self.model, predictions, groups, inputs, group)

    def prepare(self, image: str | Path | np.ndarray) -> tuple[np.ndarray, dict]:
        """Reads a file or an array; returns (H, W, 3) BGR and the model's input."""
        if isinstance(image, np.ndarray):
            image = as_bgr(image)
        elif isinstance(image, (str, Path)):
            image = read_bgr(image)
        else:
            raise ImageReadError(f"a {type(image).__name__} is no image: give a path or an array")
        rgb = image if self.cfg.INPUT.FORMAT == "BGR" else image[:, :, ::-1]
        resized = self.resize.get_transform(rgb).apply_image(rgb)
        height, width = image.shape[:2]
        inputs = {"image": channels_first(resized), "height": height, "width": width}
        if self.cfg.TEST.AUG.ENABLED:
            inputs["original"] = channels_first(rgb)
        return image, inputs


def check_threshold(threshold: float) -> float:
    """Checks that a threshold of scores is a number; scores are 0 to 1.

    Raises:
        UserError: it is none.
    """
    if not math.isfinite(threshold):
        raise UserError(f"the threshold is {threshold}; it can be 0 to 1")
    return threshold
