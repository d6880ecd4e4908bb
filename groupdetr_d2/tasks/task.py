"""The value that trainer, report, prediction, page and export read everything about a task from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from torch import Tensor

from ..data.checks import check_number_of_classes
from ..data.image_set import ImageSet, Mapper
from ..evaluation.detection_curves import ImageResult
from ..evaluation.presentation import Presentation
from ..losses.criterion import SetCriterion


@dataclass(frozen=True)
class OutputTensor:
    """An output tensor of an exported model, as its users see it.

    Attributes:
        dtype: its type in NumPy's words.
        shape: names of its dimensions, or numbers; "k" is the number of detections.
        meaning: a phrase about its values.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    meaning: str


@dataclass(frozen=True)
class Tolerance:
    """The largest difference of two detections that count as the same.

    Attributes:
        pixels: of a box's corners, in pixels of the model's input.
        score: of the scores.
        overlap: the smallest IoU of two masks.
    """

    pixels: float = 1.0
    score: float = 1e-3
    overlap: float = 0.95


@dataclass(frozen=True)
class ExportedOutputs:
    """The outputs of an exported model.

    Attributes:
        tensors: their descriptions, in the order in which `select` gives them.
        select: ``(predictions, image size (height, width), k)`` -> the outputs for the k best
            (query, class) pairs of each image, (B, k, ...) each, best first.
        are_equal: ``(expected outputs, found outputs, tolerance)`` -> whether two detections are
            the same, (B, k, k) bool for every pair of them.
        instances: ``(outputs of one image (k, ...), size of the input, size of the image)`` -> the
            detections as the model gives them; sizes are (height, width).
    """

    tensors: tuple[OutputTensor, ...]
    select: Callable[..., tuple[Tensor, ...]]
    are_equal: Callable[[Sequence[np.ndarray], Sequence[np.ndarray], Tolerance], np.ndarray]
    instances: Callable[[Sequence[np.ndarray], tuple[int, int], tuple[int, int]], Instances]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors in the file."""
        return tuple(tensor.name for tensor in self.tensors)


@dataclass(frozen=True)
class DataSource:
    """The registered data sets that models of a task learn from and are evaluated on.

    Attributes:
        images_of: ``(name, is_evaluated=False)`` -> the dataset dicts, a sequence that has `counts`
            (objects of each, (N,)), `sizes` (N, 2) and `with_objects()`, checked.
        class_names: ``(name)`` -> the names of the set's classes.
        fingerprint: ``(name)`` -> a text that changes when the set does.
        label_rows: ``(name)`` -> the set's label statistics, one row a class and the last of all.
        named_by: key of what `predict` finds a dataset dict by.
        check_evaluation: ``(name)`` raises a UserError where the set could not be evaluated on.
    """

    images_of: Callable[..., ImageSet]
    class_names: Callable[[str], Sequence[str]]
    fingerprint: Callable[[str], str]
    label_rows: Callable[[str], list[dict]]
    named_by: str = "file_name"
    check_evaluation: Callable[[str], object] = lambda name: None

    def sample_of(self, name: str) -> str:
        """Returns what `predict` can be tried on: the first image or keyframe of a set."""
        return str(self.images_of(name, is_evaluated=True)[0][self.named_by])

    def check_classes(self, cfg: CfgNode, names: Sequence[str]) -> None:
        """Checks that MODEL.DETR.NUM_CLASSES is the number of classes of every data set.

        Raises:
            DatasetError: naming the set and both numbers.
        """
        for name in names:
            check_number_of_classes(cfg.MODEL.DETR.NUM_CLASSES, name, self.class_names(name))


@dataclass(frozen=True)
class Task:
    """The differences between 2D boxes, masks and 3D boxes, at the two ends of a model.

    Attributes:
        metric: name of the number by which models are compared, in metrics.json; its first part
            names the metrics of the task among an evaluator's results.
        compared: names of the numbers that a comparison of runs shows, `metric` first.
        annotation_fields: fields of an annotation that training keeps in memory.
        shown_losses: names of the losses in the progress line.
        data: the data sets of the task.
        build_mapper: ``(cfg, is_train)`` -> the mapper from a dataset dict to a model's input.
        sees: what a model looks at, and a user gives: "images" or "keyframes".
        build_reader: ``(cfg)`` -> the function from what a user gives to what is drawn on and a
            model's input.
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
        picture_of: ``(a model's input, INPUT.FORMAT)`` -> what is drawn on to show it.
        presentation: how instances are drawn, and how a report shows them.
        of_queries: ``(predictions, (height, width) of the first image)`` -> probabilities (Q, H)
            and boxes (Q, 4) xyxy in [0, 1] of the last layer's queries on that image.
        flip: ``(instances, width)`` -> the detections on an image of that width, mirrored. None if
            the task has no test-time augmentation.
        merge: ``(detections of several views, limit)`` -> one set of detections; or None.
        fuse_flips: ``(predictions, predictions of the same queries on the mirrored images)`` ->
            their mean, query by query; None if queries have no mirror image.
        exported: the outputs of an exported model; None if models of the task are not exported.
    """

    metric: str
    compared: tuple[str, ...]
    annotation_fields: tuple[str, ...]
    shown_losses: tuple[str, ...]
    data: DataSource
    build_mapper: Callable[..., Mapper]
    sees: str
    build_reader: Callable[[CfgNode], Callable[[Any], tuple[Any, dict]]]
    build_criterion: Callable[..., SetCriterion]
    build_evaluator: Callable[[str, str | None], DatasetEvaluator]
    results_file: str
    read_results: Callable[[str, Path], list[ImageResult]]
    records: Callable[[Instances, Sequence[str]], list[dict]]
    columns: tuple[str, ...]
    flat_record: Callable[[dict], dict]
    coco_record: Callable[[dict], dict]
    as_polygons: Callable[[dict], dict] | None
    picture_of: Callable[[dict, str], Any]
    presentation: Presentation
    of_queries: Callable[..., tuple[Tensor, Tensor]]
    flip: Callable[[Instances, int], Instances] | None
    merge: Callable[[Sequence[Instances], int], Instances] | None
    fuse_flips: Callable[[Any, Any], Any] | None
    exported: ExportedOutputs | None

    @property
    def draw(self) -> Callable[..., np.ndarray]:
        """Draws instances, ``(picture, instances, class names)`` -> an image (H, W, 3) BGR."""
        return self.presentation.draw

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
