"""The value that reports and sheets of pictures read about a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.structures import Instances

from .drawing import TILE_SIDE, put_title, scaled_to

BY_SIZE = {
    "all": ("AP", "AR"),
    "small, area below 32 x 32 pixels": ("APs", "ARs"),
    "medium": ("APm", "ARm"),
    "large, area above 96 x 96 pixels": ("APl", "ARl"),
}
FEW = {"AR1": "the best one", "AR10": "the ten best"}


@dataclass(frozen=True)
class Presentation:
    """The drawing of predictions and ground truth of a task, and the names in its report.

    Attributes:
        draw: ``(picture, instances, class names)`` -> an image (H, W, 3) BGR with predictions or
            ground truth on it.
        fit: ``(picture, side)`` -> the picture, scaled so that the drawn image fits into a square.
        tile_side: width of the tiles of a sheet, in pixels.
        columns: tiles side by side.
        average: name of the evaluator's AP over all classes.
        at_threshold: name of the AP at the one overlap of the curves.
        overlap: what a detection of an object is, in the titles of figures.
        summary: names of the evaluator's numbers that a report begins with.
        errors: those of them that are no percentages.
        by_size: what objects are of, and the names of their AP and AR.
        few: names of the AR of few detections, and which these are.
    """

    draw: Callable[..., np.ndarray]
    fit: Callable[[Any, int], Any] = scaled_to
    tile_side: int = TILE_SIDE
    columns: int = 4
    average: str = "AP"
    at_threshold: str = "AP50"
    overlap: str = "IoU 0.5"
    summary: tuple[str, ...] = ("AP", "AP50", "AP75")
    errors: tuple[str, ...] = ()
    by_size: Mapping[str, tuple[str, str]] = field(default_factory=lambda: BY_SIZE)
    few: Mapping[str, str] = field(default_factory=lambda: FEW)

    def text_of(self, name: str, value: float) -> str:
        """Writes a number of the evaluator, a percentage with one digit, an error with three."""
        return f"{value:.3f}" if name in self.errors else f"{value:.1f}"

    def tile(
        self, title: str, picture: Any, instances: Instances, names: Sequence[str]
    ) -> np.ndarray:
        """Makes a tile of a sheet: the picture scaled, drawn on at that scale, with a title."""
        drawn = self.draw(self.fit(picture, self.tile_side), instances, names)
        return put_title(drawn, title, right=max(0, self.tile_side - drawn.shape[1]))
