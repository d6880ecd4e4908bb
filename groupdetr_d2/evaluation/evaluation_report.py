"""What an evaluation leaves in the output folder, from COCO's results file and the ground truth."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import MetadataCatalog

from ..data.image_file import ImageReadError, read_bgr
from ..tables import write_csv
from ..tasks.task import Task, task_of
from .detection_curves import (
    Curves,
    ImageResult,
    all_curves,
    best_threshold,
    confusion_matrix,
    mistakes_of,
)
from .drawing import draw_tile, sheet
from .report_figures import draw_confusion, draw_f1, draw_precision_recall

SHOWN_IMAGES = 8


@dataclass
class Evaluation:
    """What was found on a data set, and what it is worth at IoU 0.5."""

    task: Task
    images: list[ImageResult]
    names: list[str]
    by_class: list[Curves]
    together: Curves
    threshold: float  # with the best F1

    @classmethod
    def of(cls, task: Task, dataset: str, results_file: Path) -> "Evaluation | None":
        """Reads the file that the evaluator left; None if it left none."""
        if not results_file.is_file():
            return None
        images = task.read_results(dataset, results_file)
        names = list(MetadataCatalog.get(dataset).thing_classes)
        by_class, together = all_curves(images, len(names))
        return cls(task, images, names, by_class, together, best_threshold(together))


def results_file_of(cfg) -> Path:
    """The file of detections on the first test set."""
    return Path(cfg.OUTPUT_DIR, "inference", task_of(cfg).results_file)


def write_evaluation(evaluation: Evaluation, results: dict, folder: Path) -> list[dict]:
    """Writes `per_class.csv` and four pictures; returns the table.

    Args:
        results: the box metrics of COCO's evaluator, with "AP-<class>".
    """
    rows = per_class_rows(evaluation, results)
    write_csv(folder / "per_class.csv", rows)
    by_class, names = evaluation.by_class, evaluation.names
    matrix = confusion_matrix(evaluation.images, len(names), evaluation.threshold)
    figures = {
        "pr_curve": draw_precision_recall(by_class, names),
        "f1_curve": draw_f1(by_class, evaluation.together, names, evaluation.threshold),
        "confusion_matrix": draw_confusion(matrix, names),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    picture = draw_worst(evaluation)
    if picture is not None:
        cv2.imwrite(str(folder / "predictions.png"), picture)
    return rows


def per_class_rows(evaluation: Evaluation, results: dict) -> list[dict]:
    """Every class with its objects, AP, AP50, and what holds at the best threshold."""
    rows = []
    pairs = [*zip(evaluation.names, evaluation.by_class, strict=True)]
    for name, curves in [*pairs, ("all", evaluation.together)]:
        precision, recall, f1 = curves.at(evaluation.threshold)
        is_all = curves is evaluation.together
        values = [c.average_precision for c in evaluation.by_class if c.num_objects]
        # of a single class COCO's evaluator gives no number of its own
        key = "AP" if is_all or len(evaluation.names) == 1 else f"AP-{name}"
        ap50 = 100 * (np.mean(values) if values else np.nan) if is_all else None
        rows.append(
            {
                "class": name,
                "objects": curves.num_objects,
                "AP": float(results.get(key, np.nan)),
                "AP50": float(100 * curves.average_precision if ap50 is None else ap50),
                "precision": precision,
                "recall": recall,
                "F1": f1,
            }
        )
    return rows


def draw_worst(evaluation: Evaluation) -> np.ndarray | None:
    """Truth beside predictions, the images with the most mistakes first."""
    threshold, tiles = evaluation.threshold, []
    mistakes = [mistakes_of(image, threshold) for image in evaluation.images]
    for i in np.argsort(-np.array(mistakes), kind="stable")[:SHOWN_IMAGES]:
        tiles += _pair(evaluation, evaluation.images[i], mistakes[i])
    return sheet(tiles, columns=4) if tiles else None


def _pair(evaluation: Evaluation, image: ImageResult, mistakes: int) -> list[np.ndarray]:
    try:
        picture = read_bgr(image.name)
    except ImageReadError:
        return []
    found = image.found[image.scores >= evaluation.threshold]
    draw = partial(evaluation.task.draw, names=evaluation.names)
    file = Path(image.name).name[-28:]
    return [
        draw_tile(f"truth {file}", picture, partial(draw, instances=image.truth)),
        draw_tile(f"found, {mistakes} mistakes", picture, partial(draw, instances=found)),
    ]
