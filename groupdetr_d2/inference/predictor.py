"""A checkpoint and an image in, detections and a picture out."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ..checkpoint import CheckpointError, GroupCheckpointer
from ..data.image_file import read_bgr
from ..engine.setup import build_config, override
from ..errors import UserError
from ..evaluation.drawing import draw_boxes
from .augmented import build_evaluated_model
from .by_group import detections_by_group


@dataclass
class Detections:
    """What was found on one image."""

    image: np.ndarray  # (H, W, 3) BGR
    instances: Instances  # pred_boxes xyxy in pixels, scores, pred_classes; on the CPU
    names: list[str]  # of the classes

    def records(self) -> list[dict]:
        """Plain values, best first: "class", "score", "box" x1 y1 x2 y2 in pixels."""
        found = self.instances
        return [
            {"class": self.names[category], "score": score, "box": [round(x, 2) for x in box]}
            for box, score, category in zip(
                found.pred_boxes.tensor.tolist(),
                found.scores.tolist(),
                found.pred_classes.tolist(),
                strict=True,
            )
        ]

    def draw(self) -> np.ndarray:
        """The image with boxes, (H, W, 3) BGR."""
        found = self.instances
        boxes = found.pred_boxes.tensor
        return draw_boxes(self.image, boxes, found.pred_classes, self.names, found.scores)

    def save(self, path: str | Path) -> None:
        """Writes the picture.

        Raises:
            UserError: no picture can be written under that name.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            is_written = cv2.imwrite(str(path), self.draw())
        except cv2.error:
            is_written = False
        if not is_written:
            raise UserError(f"{path} cannot be written: is it a name such as seen.jpg?")


class Predictor:
    """A trained model, ready for single images.

    Args:
        weights: a checkpoint of this package; it carries its configuration and class names.
        threshold: detections with a lower score are left out; if not given, the one that had the
            best F1 in the training's last evaluation, or 0.5 before any.
        opts: overrides of the configuration, ``["KEY", value, ...]``; with ``["TEST.AUG.ENABLED",
            True]`` every image is looked at in several sizes and flipped.

    Raises:
        CheckpointError: the file is none of this package's checkpoints.
    """

    def __init__(
        self, weights: str | Path, *, threshold: float | None = None, opts: list | None = None
    ):
        checkpoint = read_checkpoint(weights)
        run = checkpoint["run"]
        self.threshold = run.get("threshold", 0.5) if threshold is None else threshold
        self.names = run["classes"]
        self.cfg = config_of(checkpoint)
        override(self.cfg, opts or [])
        if self.cfg.MODEL.DEVICE == "auto":
            self.cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = build_model(self.cfg).eval()
        GroupCheckpointer(self.model).load(str(weights), checkpointables=[])
        self.detector = build_evaluated_model(self.cfg, self.model).eval()
        sizes = (self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        self.resize = T.ResizeShortestEdge(*sizes)

    @torch.no_grad()
    def __call__(
        self,
        image: str | Path | np.ndarray,
        *,
        threshold: float | None = None,
        group: int | None = None,
    ) -> Detections:
        """Detects on a file or a (H, W, 3) BGR array.

        Args:
            threshold: in place of the predictor's own.
            group: the group of queries to detect with, 0 .. K-1; the primary one if not given.

        Raises:
            ImageReadError: the file cannot be read.
            UserError: the model has no such group.
        """
        image, inputs = self.prepare(image)
        if group is None:
            found = self.detector([inputs])[0]["instances"].to("cpu")
        else:
            found = self._detect_with(group, inputs)
        lowest = self.threshold if threshold is None else threshold
        return Detections(image, found[found.scores >= lowest], self.names)

    def _detect_with(self, group: int, inputs: dict) -> Instances:
        groups = self.model.groups.separate()
        numbers = groups.numbers()
        if group not in numbers:
            raise UserError(f"group {group} does not exist: the model has 0 .. {numbers[-1]}")
        predictions = self.model.predict([inputs], groups)
        return detections_by_group(self.model, predictions, groups, inputs)[group]

    def prepare(self, image: str | Path | np.ndarray) -> tuple[np.ndarray, dict]:
        """A file or a (H, W, 3) BGR array -> that array, and what the model takes of it."""
        if not isinstance(image, np.ndarray):
            image = read_bgr(image)
        rgb = image if self.cfg.INPUT.FORMAT == "BGR" else image[:, :, ::-1]
        resized = self.resize.get_transform(rgb).apply_image(rgb)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        inputs = {"image": tensor, "height": height, "width": width}
        if self.cfg.TEST.AUG.ENABLED:
            inputs["original"] = torch.as_tensor(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
        return image, inputs


def read_checkpoint(weights: str | Path) -> dict:
    """A checkpoint with its run information.

    Raises:
        CheckpointError: the file does not exist or has none.
    """
    if not Path(weights).is_file():
        raise CheckpointError(f"the checkpoint {weights} does not exist")
    checkpoint = GroupCheckpointer(torch.nn.Module())._load_file(str(weights))
    if "run" not in checkpoint:
        raise CheckpointError(
            f"{weights} does not say which configuration it belongs to: it is no checkpoint of a "
            "groupdetr_d2 training"
        )
    return checkpoint


def config_of(checkpoint: dict):
    """The configuration that a checkpoint was trained with, for this machine's device."""
    content = yaml.safe_load(checkpoint["run"]["config"])
    content["MODEL"]["DEVICE"] = "auto"
    cfg = build_config()
    cfg.merge_from_other_cfg(type(cfg)(content))
    return cfg
