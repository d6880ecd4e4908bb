"""Instance masks: COCO's mask AP, and detections with a class, a score, a mask and its box."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor

from ..data.augmentation import build_augmentation
from ..data.image_file import picture_of_input
from ..data.loader import DetectionMapper
from ..data.mask_instances import mask_instances
from ..data.segmentations import encode, polygons_of
from ..evaluation.coco_evaluator import RESULTS, CocoEvaluator
from ..evaluation.coco_results import read_mask_results
from ..evaluation.drawing import draw_masks
from ..evaluation.drawn_once import drawn_once
from ..evaluation.presentation import Presentation
from ..layers.mask_ops import boxes_around, quality_of
from ..layers.selection import best_pairs
from ..losses.classification import softmax_cost, softmax_loss, weight_of_queries
from ..losses.criterion import SetCriterion, Term
from ..losses.mask import MaskPredictions, PointSampler, bce_loss, dice_loss, mask_cost
from . import boxes
from .coco_source import coco_source
from .image_input import build_image_reader
from .task import ExportedOutputs, OutputTensor, Task, Tolerance

FIELDS = (*boxes.FIELDS, "segmentation")
# of an exported model
MASK_TENSOR = OutputTensor(
    "masks", "uint8", ("batch", "k", "height", "width"), "1 inside, in the size of the input"
)


def build_mapper(cfg: CfgNode, is_train: bool) -> DetectionMapper:
    """Builds the mapper with masks; INPUT.IMAGE_SIZE chooses large-scale jitter."""
    return DetectionMapper(
        build_augmentation(cfg, is_train),
        image_format=cfg.INPUT.FORMAT,
        is_train=is_train,
        annotation_fields=FIELDS,
        build_instances=mask_instances,
    )


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """Builds Mask2Former's costs and losses: of classes by softmax, of masks at points."""
    detr = cfg.MODEL.DETR
    no_object = {"no_object_weight": detr.NO_OBJECT_WEIGHT}
    weights = {"bce_weight": detr.MASK_COST, "dice_weight": detr.DICE_COST}
    return SetCriterion(
        costs=[Term(softmax_cost, detr.CLASS_COST), Term(partial(mask_cost, **weights), 1.0)],
        losses={
            "loss_class": Term(
                partial(softmax_loss, **no_object),
                detr.CLASS_WEIGHT,
                partial(weight_of_queries, **no_object),
            ),
            "loss_mask": Term(bce_loss, detr.MASK_WEIGHT),
            "loss_dice": Term(dice_loss, detr.DICE_WEIGHT),
        },
        matches_per_target=detr.MATCHES_PER_TARGET,
        prepare=PointSampler(
            detr.TRAIN_NUM_POINTS, detr.OVERSAMPLE_RATIO, detr.IMPORTANCE_SAMPLE_RATIO
        ),
    )


def build_evaluator(dataset: str, folder: str | None) -> CocoEvaluator:
    """Builds the evaluator of COCO's mask AP, and of the AP of the boxes around masks."""
    return CocoEvaluator(dataset, folder, with_masks=True)


def records(instances: Instances, names: Sequence[str]) -> list[dict]:
    """Lists detections as plain values: "class", "score", "box", "segmentation" (COCO's RLE)."""
    codes = encode(instances.pred_masks.cpu().numpy())
    own = boxes.records(instances, names)
    return [{**x, "segmentation": code} for x, code in zip(own, codes, strict=True)]


def coco_record(record: dict) -> dict:
    """The box and the mask of a record as COCO's results have them."""
    return {**boxes.coco_record(record), "segmentation": record["segmentation"]}


def as_polygons(record: dict) -> dict:
    """A record with its mask as polygons; holes are filled."""
    return {**record, "segmentation": polygons_of(record["segmentation"])}


def draw(image: np.ndarray, instances: Instances, names: Sequence[str]) -> np.ndarray:
    """Draws masks, class names and, of predictions, scores on a copy of the image.

    A mask that was found with several classes is drawn once, with the best one.
    """
    instances = drawn_once(instances)
    kind = "pred" if instances.has("pred_masks") else "gt"
    masks = instances.get(f"{kind}_masks")
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    masks = masks.tensor if isinstance(masks, BitMasks) else masks
    drawn = draw_masks(image, masks.cpu().numpy(), instances.get(f"{kind}_classes"))
    return boxes.draw(drawn, instances, names)


def of_queries(predictions: MaskPredictions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns probabilities (Q, H), and boxes (Q, 4) around masks, on the first image."""
    features = predictions.features.value[0]
    masks = torch.einsum("qc,chw->qhw", predictions.embeddings[-1, 0], features) > 0
    sides = torch.tensor([*size[::-1]] * 2, device=features.device)
    boxes_xyxy = boxes_around(masks) * predictions.stride / sides
    return predictions.logits[-1, 0].softmax(-1)[:, :-1], boxes_xyxy.clamp(max=1)


def select_outputs(
    predictions: MaskPredictions, size: tuple[int, int], k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Selects masks (B, k, H, W), boxes (B, k, 4), scores and labels (B, k), best first.

    Masks are of the size of the input, 1 inside; boxes are xyxy in pixels.
    """
    queries, labels, scores = best_pairs(predictions.logits[-1], k)
    embeddings = predictions.embeddings[-1]
    chosen = embeddings.gather(1, queries[..., None].expand(-1, -1, embeddings.shape[-1]))
    logits = torch.einsum("bqc,bchw->bqhw", chosen, predictions.features.value)
    padded = [side * predictions.stride for side in logits.shape[2:]]
    logits = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
    # a slice would bind an exported file to sizes that need no padding
    for dim, side in zip((2, 3), size, strict=True):
        logits = logits.index_select(dim, torch.arange(side, device=logits.device))
    masks = logits > 0  # (B, k, H, W)
    scores, order = (scores * quality_of(logits, masks)).sort(dim=1, descending=True)
    masks = masks.to(torch.uint8).gather(1, order[..., None, None].expand_as(masks))
    return masks, boxes_around(masks > 0), scores, labels.gather(1, order)


def are_equal(
    expected: Sequence[np.ndarray], found: Sequence[np.ndarray], tolerance: Tolerance
) -> np.ndarray:
    """Compares every two detections of an image by mask, score and label, (B, k, k) bool."""
    a, b = (x[0].reshape(*x[0].shape[:2], -1).astype(np.float32) for x in (expected, found))
    overlap = a @ b.transpose(0, 2, 1)
    union = a.sum(-1)[:, :, None] + b.sum(-1)[:, None] - overlap
    score, label = (
        x[:, :, None] - y[:, None] for x, y in zip(expected[2:], found[2:], strict=True)
    )
    is_near = (overlap >= tolerance.overlap * union) & (np.abs(score) < tolerance.score)
    return is_near & (label == 0)


def instances_of(
    outputs: Sequence[np.ndarray], size: tuple[int, int], original: tuple[int, int]
) -> Instances:
    """Makes `Instances` in an image's own size of an exported model's outputs (k, ...)."""
    masks, _, scores, labels = map(torch.from_numpy, outputs)
    resized = F.interpolate(masks[None].float(), original, mode="bilinear", align_corners=False)
    found = Instances(original, scores=scores, pred_classes=labels)
    found.pred_masks = resized[0] > 0.5
    found.pred_boxes = Boxes(boxes_around(found.pred_masks))
    return found


MASKS = Task(
    metric="segm/AP",
    compared=("segm/AP", "segm/AP50"),
    annotation_fields=FIELDS,
    shown_losses=("loss_class", "loss_mask", "loss_dice"),
    data=coco_source(with_masks=True),
    build_mapper=build_mapper,
    sees="images",
    build_reader=build_image_reader,
    build_criterion=build_criterion,
    build_evaluator=build_evaluator,
    results_file=RESULTS,
    read_results=read_mask_results,
    records=records,
    columns=boxes.BOXES.columns,
    flat_record=boxes.flat_record,
    coco_record=coco_record,
    as_polygons=as_polygons,
    picture_of=picture_of_input,
    presentation=Presentation(draw),
    of_queries=of_queries,
    flip=None,
    merge=None,
    fuse_flips=None,
    exported=ExportedOutputs(
        (MASK_TENSOR, *boxes.BOX_TENSORS), select_outputs, are_equal, instances_of
    ),
)
