"""The 3D boxes of a keyframe as pictures need them, whether true or found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances

from ..data.nuscenes.geometry import YAW
from .colours import class_colour
from .drawn_once import drawn_once


@dataclass(frozen=True)
class DrawnBoxes:
    """Boxes in the frame of a keyframe's lidar, with x to the right and y forward."""

    boxes: np.ndarray  # (n, 9)
    classes: np.ndarray  # (n,) int
    scores: np.ndarray | None = None  # (n,) of those that were found

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of_truth(cls, instances: Instances) -> "DrawnBoxes":
        """Takes `gt_boxes3d` (n, 9) and `gt_classes` of instances."""
        values = instances.to("cpu")
        return cls(values.gt_boxes3d.double().numpy(), values.gt_classes.numpy())

    @classmethod
    def of_found(cls, instances: Instances) -> "DrawnBoxes":
        """Takes `pred_boxes3d` (n, 9), `pred_classes` and `scores` of instances, where finite.

        A box that was found with several classes is taken once, with the best one.
        """
        values = instances.to("cpu")
        values = drawn_once(values[values.pred_boxes3d[:, : YAW + 1].isfinite().all(1)])
        boxes, classes = values.pred_boxes3d.double().numpy(), values.pred_classes.numpy()
        return cls(boxes, classes, values.scores.double().numpy())

    def colours(self) -> list[tuple[int, int, int]]:
        """Picks the BGR colour of each box by its class."""
        return [class_colour(int(category)) for category in self.classes]

    def labels(self, names: Sequence[str]) -> list[str]:
        """Writes the class of each box, and its score if it has one."""
        texts = [names[int(category)] for category in self.classes]
        if self.scores is None:
            return texts
        return [f"{text} {score:.2f}" for text, score in zip(texts, self.scores, strict=True)]
