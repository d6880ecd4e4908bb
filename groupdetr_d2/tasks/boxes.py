"""2D boxes: COCO's box AP, and detections with a class, a score and a box."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data.transforms import HFlipTransform
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..data.augmentation import build_augmentation
from ..data.image_file import picture_of_input
from ..data.loader import DetectionMapper
from ..evaluation.coco_evaluator import RESULTS, CocoEvaluator
from ..evaluation.coco_results import read_box_results
from ..evaluation.drawing import draw_boxes
from ..evaluation.drawn_once import drawn_once
from ..evaluation.fusion import merge_by_fusion
from ..evaluation.presentation import Presentation
from ..layers.box_ops import box_cxcywh_to_xyxy, mirrored
from ..layers.selection import top_k
from ..losses.box2d import BoxPredictions, giou_cost, giou_loss, l1_cost, l1_loss
from ..losses.classification import focal_cost, focal_loss
from ..losses.criterion import SetCriterion, Term
from ..structures import sizes_of
from .coco_source import coco_source
from .image_input import build_image_reader
from .task import ExportedOutputs, OutputTensor, Task, Tolerance

FIELDS = ("bbox", "bbox_mode", "category_id", "iscrowd")
CORNERS = ("x1", "y1", "x2", "y2")
# of an exported model; masks have them, too
BOX_TENSORS = (
    OutputTensor(
        "boxes",
        "float32",
        ("batch", "k", 4),
        "x1 y1 x2 y2 in pixels of the input, not beyond its edges",
    ),
    OutputTensor("scores", "float32", ("batch", "k"), "0 to 1, best first"),
    OutputTensor("labels", "int64", ("batch", "k"), "places in class_names, from 0"),
)


def build_mapper(cfg: CfgNode, is_train: bool) -> DetectionMapper:
    """Builds the mapper with DETR's augmentation."""
    return DetectionMapper(
        build_augmentation(cfg, is_train),
        image_format=cfg.INPUT.FORMAT,
        is_train=is_train,
        annotation_fields=FIELDS,
        keeps_original=not is_train and cfg.TEST.AUG.ENABLED,
    )


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """Builds DETR's three costs and losses of boxes. The class cost is 2 in every variant."""
    detr = cfg.MODEL.DETR
    return SetCriterion(
        costs=[
            Term(focal_cost, detr.CLASS_COST),
            Term(l1_cost, detr.L1_COST),
            Term(giou_cost, detr.GIOU_COST),
        ],
        losses={
            "loss_class": Term(focal_loss, detr.CLASS_WEIGHT),
            "loss_bbox": Term(l1_loss, detr.L1_WEIGHT),
            "loss_giou": Term(giou_loss, detr.GIOU_WEIGHT),
        },
        matches_per_target=detr.MATCHES_PER_TARGET,
    )


def build_evaluator(dataset: str, folder: str | None) -> CocoEvaluator:
    """Builds the evaluator of COCO's box AP."""
    return CocoEvaluator(dataset, folder)


def records(instances: Instances, names: Sequence[str]) -> list[dict]:
    """Lists detections as plain values: "class", "score", "box" x1 y1 x2 y2 in pixels."""
    return [
        {"class": names[category], "score": score, "box": [round(x, 2) for x in box]}
        for box, score, category in zip(
            instances.pred_boxes.tensor.tolist(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        )
    ]


def flat_record(record: dict) -> dict:
    """Gives the corners of a record's box names of their own."""
    corners = dict(zip(CORNERS, record["box"], strict=True))
    return {"class": record["class"], "score": record["score"], **corners}


def coco_record(record: dict) -> dict:
    """The box of a record as COCO's results have it: x, y, width, height."""
    x1, y1, x2, y2 = record["box"]
    return {"bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]}


def draw(image: np.ndarray, instances: Instances, names: Sequence[str]) -> np.ndarray:
    """Draws boxes, class names and, of predictions, scores on a copy of the image.

    A box that was found with several classes is drawn once, with the best one.
    """
    instances = drawn_once(instances)
    kind = "pred" if instances.has("pred_boxes") else "gt"
    boxes, classes = instances.get(f"{kind}_boxes"), instances.get(f"{kind}_classes")
    height, width = instances.image_size
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    scores = instances.scores if instances.has("scores") else None
    return draw_boxes(image, boxes.tensor.cpu().numpy() * scale, classes, names, scores)


def of_queries(predictions: BoxPredictions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns probabilities (Q, H) and boxes (Q, 4) of the last layer on the first image."""
    return predictions.logits[-1, 0].sigmoid(), box_cxcywh_to_xyxy(predictions.boxes[-1, 0])


def flip(instances: Instances, width: int) -> Instances:
    """Mirrors detections on an image of that width, in place."""
    boxes = HFlipTransform(width).apply_box(instances.pred_boxes.tensor.numpy())
    instances.pred_boxes = Boxes(torch.as_tensor(boxes))
    return instances


def fuse_flips(plain: BoxPredictions, flipped: BoxPredictions) -> BoxPredictions:
    """Averages the probabilities and boxes of each query on an image and on its mirror image."""
    logits = torch.stack([plain.logits, flipped.logits])
    boxes = torch.stack([plain.boxes, mirrored(flipped.boxes)])
    # the logit of the mean probability, exact where that is next to 0 or 1
    mean = F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
    return BoxPredictions(mean, boxes.mean(0))


def select_outputs(
    predictions: BoxPredictions, size: tuple[int, int], k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Selects boxes (B, k, 4) xyxy in pixels, scores (B, k) and labels (B, k), best first.

    Boxes end at the edges of the image.
    """
    boxes, scores, labels = top_k(predictions.logits[-1], predictions.boxes[-1], k)
    return boxes.clamp(0, 1) * sizes_of((size,), boxes).repeat(1, 2), scores, labels


def are_equal(
    expected: Sequence[np.ndarray], found: Sequence[np.ndarray], tolerance: Tolerance
) -> np.ndarray:
    """Compares every two detections of an image by box, score and label, (B, k, k) bool."""
    pairs = ((a[:, :, None], b[:, None]) for a, b in zip(expected, found, strict=True))
    box, score, label = (a - b for a, b in pairs)  # (B, k, k, ...)
    is_near = (np.abs(box).max(-1) < tolerance.pixels) & (np.abs(score) < tolerance.score)
    return is_near & (label == 0)


def instances_of(
    outputs: Sequence[np.ndarray], size: tuple[int, int], original: tuple[int, int]
) -> Instances:
    """Makes `Instances` in an image's own size of an exported model's outputs (k, ...)."""
    found = Instances(size)
    boxes, found.scores, found.pred_classes = map(torch.from_numpy, outputs)
    found.pred_boxes = Boxes(boxes)
    return detector_postprocess(found, *original)


BOXES = Task(
    metric="bbox/AP",
    compared=("bbox/AP", "bbox/AP50"),
    annotation_fields=FIELDS,
    shown_losses=("loss_class", "loss_bbox", "loss_giou"),
    data=coco_source(with_masks=False),
    build_mapper=build_mapper,
    sees="images",
    build_reader=build_image_reader,
    build_criterion=build_criterion,
    build_evaluator=build_evaluator,
    results_file=RESULTS,
    read_results=read_box_results,
    records=records,
    columns=("class", "score", *CORNERS),
    flat_record=flat_record,
    coco_record=coco_record,
    as_polygons=None,
    picture_of=picture_of_input,
    presentation=Presentation(draw),
    of_queries=of_queries,
    flip=flip,
    merge=merge_by_fusion,
    fuse_flips=fuse_flips,
    exported=ExportedOutputs(BOX_TENSORS, select_outputs, are_equal, instances_of),
)
