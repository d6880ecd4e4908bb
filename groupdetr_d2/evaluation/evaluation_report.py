"""Tables and pictures of an evaluation, from its detections and the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from ..data.image_file import ImageReadError
from ..tables import write_csv
from .detection_curves import (
    Curves,
    ImageResult,
    all_curves,
    best_threshold,
    confusion_matrix,
    mistakes_of,
    pairs_of,
)
from .drawing import sheet
from .lettering import drawable, use_fonts_in_figures
from .presentation import Presentation
from .report_figures import draw_confusion, draw_f1, draw_precision_recall

SHOWN_IMAGES = 8


@dataclass
class Evaluation:
    """The detections on a data set, and how good they are at one overlap, such as IoU 0.5."""

    images: list[ImageResult]
    names: list[str]
    by_class: list[Curves]
    together: Curves
    threshold: float  # with the best F1

    @cached_property
    def pairs(self) -> list[np.ndarray]:
        """True and found class of all objects and detections, image by image."""
        return [pairs_of(image, self.threshold) for image in self.images]

    @classmethod
    def of(cls, images: list[ImageResult], names: Sequence[str]) -> "Evaluation":
        """Computes the curves of images whose classes have these names."""
        by_class, together = all_curves(images, len(names))
        return cls(images, list(names), by_class, together, best_threshold(together))


def write_evaluation(
    evaluation: Evaluation, metrics: dict, folder: Path, shown: Presentation
) -> list[dict]:
    """Writes `per_class.csv` and four pictures; returns the table.

    Args:
        metrics: the metrics of the evaluator, with "AP-<class>".
        shown: the presentation of the task.
    """
    rows = per_class_rows(evaluation, metrics, shown)
    use_fonts_in_figures(tuple(evaluation.names))
    write_csv(folder / "per_class.csv", rows)
    by_class, names = evaluation.by_class, [drawable(name) for name in evaluation.names]
    matrix = confusion_matrix(evaluation.pairs, len(names))
    figures = {
        "pr_curve": draw_precision_recall(by_class, names, shown.overlap),
        "f1_curve": draw_f1(
            by_class, evaluation.together, names, evaluation.threshold, shown.overlap
        ),
        "confusion_matrix": draw_confusion(matrix, names, shown.overlap),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    picture = draw_worst(evaluation, shown)
    if picture is not None:
        cv2.imwrite(str(folder / "predictions.png"), picture)
    return rows


def per_class_rows(evaluation: Evaluation, metrics: dict, shown: Presentation) -> list[dict]:
    """Lists every class with its objects, both APs, and its numbers at the best threshold."""
    rows = []
    pairs = [*zip(evaluation.names, evaluation.by_class, strict=True)]
    for name, curves in [*pairs, ("all", evaluation.together)]:
        precision, recall, f1 = curves.at(evaluation.threshold)
        is_all = curves is evaluation.together
        values = [c.average_precision for c in evaluation.by_class if c.num_objects]
        # the evaluator gives a single class no number of its own
        key = shown.average if is_all or len(evaluation.names) == 1 else f"AP-{name}"
        ap50 = 100 * (np.mean(values) if values else np.nan) if is_all else None
        rows.append(
            {
                "class": name,
                "objects": curves.num_objects,
                "AP": float(metrics.get(key, np.nan)),
                shown.at_threshold: float(100 * curves.average_precision if ap50 is None else ap50),
                "precision": precision,
                "recall": recall,
                "F1": f1,
            }
        )
    return rows


def draw_worst(evaluation: Evaluation, shown: Presentation) -> np.ndarray | None:
    """Draws truth beside predictions, the images with the most mistakes first."""
    tiles: list[np.ndarray] = []
    mistakes = [mistakes_of(pairs) for pairs in evaluation.pairs]
    for i in np.argsort(-np.array(mistakes), kind="stable")[:SHOWN_IMAGES]:
        tiles += _pair(evaluation, evaluation.images[i], mistakes[i], shown)
    return sheet(tiles, columns=shown.columns) if tiles else None


def _pair(
    evaluation: Evaluation, image: ImageResult, mistakes: int, shown: Presentation
) -> list[np.ndarray]:
    assert image.truth and image.found and image.picture
    found = image.found()[image.scores >= evaluation.threshold]
    file = Path(image.name).name[-28:]
    titles = (f"truth {file}", f"found, {mistakes} mistakes")
    try:
        picture = image.picture()
        return [
            shown.tile(title, picture, instances, evaluation.names)
            for title, instances in zip(titles, (image.truth(), found), strict=True)
        ]
    except ImageReadError:
        return []
