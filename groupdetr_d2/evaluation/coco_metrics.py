"""COCO's AP of boxes and masks, from columns of truth and of detections.

The truth that COCO's evaluation gets has ids of its own making, areas and flags that are checked,
and nothing else: an annotation with the id 0, ids that are texts, or fields to which pycocotools
gives a meaning would change AP without a word. It is computed by faster-coco-eval where that is
installed, else by pycocotools; both give the same numbers (tests/evaluation/test_coco_metrics.py).
"""

import contextlib
import importlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from ..data.coco_columns import CocoColumns
from ..data.segmentations import compressed

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# mean recall: with 1, 10 and all detections that count, and the latter by size of objects
RECALLS = ("AR1", "AR10", "AR", "ARs", "ARm", "ARl")
MAX_DETECTIONS = 100  # of a class on an image, COCO's


@dataclass(frozen=True)
class DetectionColumns:
    """M detections on the images of a data set."""

    image_of: np.ndarray  # (M,) int64, places of images in the columns of the truth
    class_of: np.ndarray  # (M,) int64
    boxes: np.ndarray  # (M, 4) float64: x, y, width, height
    scores: np.ndarray  # (M,) float64
    masks: Sequence[dict] | None = None  # M RLEs with "size" and "counts", of a model of masks


def evaluation_package() -> tuple[str, ModuleType, Any]:
    """Finds the package that computes AP: its name, the module with `COCO`, the evaluation."""
    try:
        package = importlib.import_module("faster_coco_eval")
        return "faster-coco-eval", package, package.COCOeval_faster
    except ImportError:
        module = importlib.import_module("pycocotools.coco")
        return "pycocotools", module, importlib.import_module("pycocotools.cocoeval").COCOeval


def coco_metrics(
    truth: CocoColumns,
    found: DetectionColumns,
    names: Sequence[str],
    *,
    kind: Literal["bbox", "segm"] = "bbox",
    images: Sequence[int] | None = None,
    package: tuple | None = None,
) -> dict[str, float]:
    """Computes AP, AP50, AP75, by size, "AP-<class>" of several classes, and AR, in per cent.

    Args:
        names: of the classes.
        kind: what overlaps are of.
        images: places of the images that count; all if not given.
        package: see :func:`evaluation_package`.

    Returns:
        metrics by name; nan where there are no objects to find.
    """
    if not len(found.scores):
        classes = [f"AP-{name}" for name in names] if len(names) > 1 else []
        return dict.fromkeys([*METRICS, *classes, *RECALLS], float("nan"))
    _, module, evaluation = package or evaluation_package()
    with contextlib.redirect_stdout(io.StringIO()):
        pair = _truth(module, truth, kind), _found(module, truth, found, kind)
        run = evaluation(*pair, kind)
        run.params.maxDets = [1, 10, detections_counted(truth)]
        if images is not None:
            run.params.imgIds = [image + 1 for image in images]
        run.evaluate()
        run.accumulate()
    metrics = dict(zip(METRICS, map(_per_cent, _stats(run)), strict=True))
    if len(names) > 1:
        metrics |= {f"AP-{name}": value for name, value in zip(names, _by_class(run), strict=True)}
    return {**metrics, **dict(zip(RECALLS, map(_per_cent, _recalls(run)), strict=True))}


def _per_cent(value: float) -> float:
    return value * 100 if value > -1 else float("nan")


def detections_counted(truth: CocoColumns) -> int:
    """COCO's hundred detections, or as many as the fullest image has objects of a class."""
    pairs = truth.image_of * max(len(truth.class_names), 1) + truth.class_of
    return max(MAX_DETECTIONS, int(np.unique(pairs, return_counts=True)[1].max(initial=0)))


def _stats(run: Any) -> Sequence[float]:
    """COCO's six numbers; pycocotools computes the first for 100 detections alone."""
    precision = run.eval["precision"]  # (IoU, recall, class, area, detections)
    thresholds = run.params.iouThrs

    def mean(iou: float | None = None, area: int = 0) -> float:
        chosen = precision if iou is None else precision[np.isclose(thresholds, iou)]
        return _mean(chosen[:, :, :, area, -1])

    return [mean(), mean(0.5), mean(0.75), mean(area=1), mean(area=2), mean(area=3)]


def _recalls(run: Any) -> Sequence[float]:
    """COCO's six mean recalls, over the thresholds of IoU and the classes."""
    recall = run.eval["recall"]  # (IoU, class, area, detections)
    by_number = [_mean(recall[:, :, 0, i]) for i in range(recall.shape[-1])]
    return [*by_number, *(_mean(recall[:, :, area, -1]) for area in (1, 2, 3))]


def _mean(values: np.ndarray) -> float:
    """The mean of what is known; -1 where nothing is."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else -1.0


def _by_class(run: Any) -> list[float]:
    precision = run.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class)
    values = []
    for i in range(precision.shape[2]):
        own = precision[:, :, i]
        own = own[own > -1]
        values.append(float(own.mean()) * 100 if len(own) else float("nan"))
    return values


def _truth(module: ModuleType, truth: CocoColumns, kind: str) -> Any:
    annotations = _annotations(truth, truth.areas, truth.crowd)
    if kind == "segm":
        for annotation, mask in zip(annotations, true_masks(truth), strict=True):
            annotation["segmentation"] = mask
    return _indexed(module, truth, annotations)


def true_masks(truth: CocoColumns) -> Iterator[dict]:
    """Yields the compressed RLE of every object of a set whose masks were read."""
    assert truth.segmentations is not None
    sizes = truth.sizes[truth.image_of].tolist()
    for i, (width, height) in enumerate(sizes):
        yield compressed(truth.segmentations[i], (height, width))


def _found(module: ModuleType, truth: CocoColumns, found: DetectionColumns, kind: str) -> Any:
    areas = found.boxes[:, 2] * found.boxes[:, 3]
    masks = found.masks if kind == "segm" and found.masks is not None else []
    if kind == "segm":
        areas = np.array([coco_mask.area(mask) for mask in masks], dtype=np.float64)
    annotations = _annotations(found, areas, np.zeros(len(areas), dtype=bool))
    for annotation, score in zip(annotations, found.scores.tolist(), strict=True):
        annotation["score"] = score
    for annotation, mask in zip(annotations, masks, strict=False):
        annotation["segmentation"] = mask
    return _indexed(module, truth, annotations)


def _annotations(
    columns: CocoColumns | DetectionColumns, areas: np.ndarray, crowd: np.ndarray
) -> list[dict]:
    """Makes COCO's records of objects or detections, with ids that count from 1."""
    places = (columns.image_of, columns.class_of, columns.boxes, areas, crowd.astype(int))
    rows = zip(*(x.tolist() for x in places), strict=True)
    return [
        {
            "id": i,
            "image_id": image + 1,
            "category_id": category + 1,
            "bbox": box,
            "area": area,
            "iscrowd": is_crowd,
        }
        for i, (image, category, box, area, is_crowd) in enumerate(rows, 1)
    ]


def _indexed(module: ModuleType, truth: CocoColumns, annotations: list[dict]) -> Any:
    """Makes a `COCO` of annotations on the images of the truth."""
    coco = module.COCO()
    sizes = truth.sizes.tolist()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes, 1)],
        "categories": [{"id": i, "name": str(x)} for i, x in enumerate(truth.class_names, 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
