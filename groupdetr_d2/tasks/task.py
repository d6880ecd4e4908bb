"""The value that trainer, report, prediction, page and export read everything about a task from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from torch import Tensor

from ..data.loader import DetectionMapper
from ..evaluation.detection_curves import ImageResult
from ..losses.criterion import SetCriterion


@dataclass(frozen=True)
class ExportedOutputs:
    """The output tensors of an exported model.

    Attributes:
        names: their names in the file.
        select: ``(predictions, image size (height, width), k)`` -> the outputs for the k best
            (query, class) pairs of each image, (B, k, ...) each, best first.
        are_equal: ``(expected outputs, found outputs)`` -> whether two detections are the same up
            to rounding, (B, k, k) bool for every pair of them.
    """

    names: tuple[str, ...]
    select: Callable[..., tuple[Tensor, ...]]
    are_equal: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]
    description: str  # of the outputs, for the user; "{k}" stands for their number


@dataclass(frozen=True)
class Task:
    """The differences between 2D boxes, masks and 3D boxes, at the two ends of a model.

    Attributes:
        metric: name of the number by which models are compared, in metrics.json; its first part
            names the metrics of the task among an evaluator's results.
        compared: names of the numbers that a comparison of runs shows, `metric` first.
        annotation_fields: fields of an annotation that training keeps in memory.
        shown_losses: names of the losses in the progress line.
        build_mapper: ``(cfg, is_train)`` -> the mapper from a dataset dict to a model's input.
        build_criterion: ``(cfg)`` -> costs and losses.
        build_evaluator: ``(dataset name, output folder or None)`` -> Detectron2's evaluator.
        results_file: name of the file of detections that the evaluator leaves in its folder.
        read_results: ``(dataset name, results file)`` -> ground truth and detections by image.
        records: ``(instances, class names)`` -> one dictionary of plain values per detection, best
            first, with "class" and "score".
        columns: names of the columns of a table of records, "class" and "score" first.
        flat_record: a record as a dictionary with these keys, of numbers and texts alone.
        coco_record: what a record adds to a result in COCO's format, beside ids and score.
        as_polygons: a record with its mask as polygons; None if the task has no masks.
        draw: ``(image (H, W, 3) BGR, instances, class names)`` -> a copy of the image with
            predictions or ground truth drawn, scaled from `instances.image_size` to the image.
        of_queries: ``(predictions, (height, width) of the first image)`` -> probabilities (Q, H)
            and boxes (Q, 4) xyxy in [0, 1] of the last layer's queries on that image.
        flip: ``(instances, width)`` -> the detections on an image of that width, mirrored. None if
            the task has no test-time augmentation.
        merge: ``(detections of several views, limit)`` -> one set of detections; or None.
        exported: the outputs of an exported model.
    """

    metric: str
    compared: tuple[str, ...]
    annotation_fields: tuple[str, ...]
    shown_losses: tuple[str, ...]
    build_mapper: Callable[..., DetectionMapper]
    build_criterion: Callable[..., SetCriterion]
    build_evaluator: Callable[[str, str | None], DatasetEvaluator]
    results_file: str
    read_results: Callable[[str, Path], list[ImageResult]]
    records: Callable[[Instances, Sequence[str]], list[dict]]
    columns: tuple[str, ...]
    flat_record: Callable[[dict], dict]
    coco_record: Callable[[dict], dict]
    as_polygons: Callable[[dict], dict] | None
    draw: Callable[..., np.ndarray]
    of_queries: Callable[..., tuple[Tensor, Tensor]]
    flip: Callable[[Instances, int], Instances] | None
    merge: Callable[[Sequence[Instances], int], Instances] | None
    exported: ExportedOutputs

    @property
    def with_masks(self) -> bool:
        """Whether training and evaluation read the masks of a data set."""
        return "segmentation" in self.annotation_fields

    @property
    def kind(self) -> str:
        """The name of the task's metrics among an evaluator's results."""
        return self.metric.partition("/")[0]

    def metrics_of(self, results: dict) -> dict[str, float]:
        """Finds the metrics of the first test set in Detectron2's results; empty without any.

        An evaluator of the user's own may give others alone.
        """
        first = results if self.kind in results else next(iter(results.values()), {})
        found = first.get(self.kind) if isinstance(first, dict) else None
        return found if isinstance(found, dict) else {}

    def score_of(self, results: dict) -> float | None:
        """Finds the number by which models are compared; None if there are no results."""
        return self.metrics_of(results).get(self.metric.partition("/")[2])
