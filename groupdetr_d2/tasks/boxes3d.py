"""Boxes in space: nuScenes' detection score, and detections with a class, a score and a box."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from ..data.nuscenes.catalog import frames_of
from ..data.nuscenes.index import NuScenesFrames
from ..data.nuscenes.label_statistics import frame_label_rows
from ..data.nuscenes.mapper import EarlierFrame, FrameMapper, SpaceAugmentation, ViewAugmentation
from ..errors import UserError
from ..evaluation.frame_picture import FramePicture
from ..evaluation.nuscenes_evaluator import ERRORS, RESULTS, NuScenesEvaluator
from ..evaluation.nuscenes_results import read_nuscenes_results
from ..evaluation.presentation import Presentation
from ..layers.box3d_ops import decode_boxes
from ..losses.box3d import Box3DPredictions, code_cost, code_loss, of_this_process
from ..losses.classification import focal_cost, focal_loss
from ..losses.criterion import SetCriterion, Term
from .task import DataSource, Task

FIELDS = ("box", "category_id")
NUMBERS = ("x", "y", "z", "w", "l", "h", "yaw", "vx", "vy")
COST_EPS = 1e-12  # of the official class cost
SHOWN_RANGE = 51.2  # metres from the lidar that relative boxes cover


def build_mapper(cfg: CfgNode, is_train: bool) -> FrameMapper:
    """Builds PETR's mapper from INPUT.VIEWS.* and MODEL.DETR.SPACE.BOX_RANGE.

    Raises:
        UserError: a key has a value that nothing can be built with.
    """
    views = cfg.INPUT.VIEWS
    check_pair("INPUT.VIEWS.SIZE", views.SIZE, smallest=1, is_whole=True)
    check_pair("INPUT.VIEWS.SCALES", views.SCALES)
    check_pair("INPUT.VIEWS.SPACE_SCALES", views.SPACE_SCALES)
    earlier = None
    if views.EARLIER:
        check_pair("INPUT.VIEWS.EARLIER", views.EARLIER, smallest=0, is_whole=True)
        first, end = views.EARLIER
        if not first < end:
            raise UserError(f"INPUT.VIEWS.EARLIER is {[first, end]}; the second has to be larger")
        earlier = EarlierFrame(first, end, views.FRAME_SECONDS)
    flips = cfg.INPUT.RANDOM_FLIP != "none"
    return FrameMapper(
        ViewAugmentation(tuple(views.SIZE), tuple(views.SCALES), flips),
        SpaceAugmentation(views.ROTATION, tuple(views.SPACE_SCALES)),
        earlier=earlier,
        image_format=cfg.INPUT.FORMAT,
        is_train=is_train,
        box_range=cfg.MODEL.DETR.SPACE.BOX_RANGE,
    )


def build_reader(cfg: CfgNode) -> Callable[[Any], tuple[FramePicture, dict]]:
    """Builds the function from a keyframe's record to its photographs and a model's input."""
    mapper = build_mapper(cfg, is_train=False)

    def read(record: Any) -> tuple[FramePicture, dict]:
        if not isinstance(record, dict) or "views" not in record:
            raise UserError(
                f"a {type(record).__name__} is no keyframe: {cfg.MODEL.META_ARCHITECTURE} sees the "
                "photographs of several cameras and their matrices at once. Give a record such as "
                "frames_of('nuscenes_val')[0] (groupdetr_d2.data.nuscenes.catalog)"
            )
        return FramePicture.of_record(record), mapper(record)

    return read


def check_pair(
    key: str, values: Sequence[float], smallest: float = 1e-6, *, is_whole: bool = False
) -> None:
    """Checks that a key has two numbers, which may have to be whole ones.

    Raises:
        UserError: naming the key and its value.
    """
    kinds = int if is_whole else (int, float)
    if len(values) != 2 or not all(isinstance(x, kinds) and x >= smallest for x in values):
        what = "whole numbers" if is_whole else "numbers"
        raise UserError(f"{key} is {list(values)}; it has to be two {what} of at least {smallest}")


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """Builds PETR's costs and losses: of classes by focal loss, of codes of boxes by L1."""
    detr = cfg.MODEL.DETR
    return SetCriterion(
        costs=[
            Term(partial(focal_cost, eps=COST_EPS), detr.CLASS_COST),
            Term(code_cost, detr.L1_COST),
        ],
        losses={
            "loss_class": Term(focal_loss, detr.CLASS_WEIGHT, of_this_process),
            "loss_bbox": Term(
                partial(code_loss, velocity_weight=detr.VELOCITY_WEIGHT), detr.L1_WEIGHT
            ),
        },
        matches_per_target=detr.MATCHES_PER_TARGET,
    )


def build_evaluator(dataset: str, folder: str | None) -> NuScenesEvaluator:
    """Builds the evaluator of nuScenes' detection score."""
    return NuScenesEvaluator(dataset, folder)


def records(instances: Instances, names: Sequence[str]) -> list[dict]:
    """Lists detections as plain values: "class", "score", "box" x y z w l h yaw vx vy."""
    return [
        {"class": names[category], "score": score, "box": [round(x, 4) for x in box]}
        for box, score, category in zip(
            instances.pred_boxes3d.tolist(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        )
    ]


def flat_record(record: dict) -> dict:
    """Gives the numbers of a record's box names of their own."""
    numbers = dict(zip(NUMBERS, record["box"], strict=True))
    return {"class": record["class"], "score": record["score"], **numbers}


def coco_record(record: dict) -> dict:
    """The box of a record; COCO's results have no boxes in space, and it stays as it is."""
    return {"box": record["box"]}


def draw(picture: FramePicture, instances: Instances, names: Sequence[str]) -> np.ndarray:
    """Draws boxes on the photographs, and from above beside them."""
    if instances.has("pred_boxes3d"):
        return picture.draw(names, truth=None, found=instances)
    return picture.draw(names, truth=instances, found=None)


def of_queries(predictions: Box3DPredictions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns probabilities (Q, H), and upright boxes (Q, 4) as seen from above."""
    boxes = decode_boxes(predictions.codes[-1, 0])
    cos, sin = boxes[:, 6].cos().abs(), boxes[:, 6].sin().abs()
    width, length = boxes[:, 3], boxes[:, 4]
    half = torch.stack([length * cos + width * sin, length * sin + width * cos], 1) / 2
    corners = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)
    relative = corners / (2 * SHOWN_RANGE) + 0.5
    return predictions.logits[-1, 0].sigmoid(), relative.clamp(0, 1)


def class_names(name: str) -> Sequence[str]:
    """The names of the classes of a registered set."""
    return frames_of(name).class_names


def fingerprint(name: str) -> str:
    """A text that changes when a registered set does."""
    return frames_of(name).fingerprint


def images_of(name: str, *, is_evaluated: bool = False) -> NuScenesFrames:
    """The keyframes of a registered set."""
    return frames_of(name)


def label_rows(name: str) -> list[dict]:
    """The label statistics of a registered set."""
    return frame_label_rows(frames_of(name))


BOXES3D = Task(
    metric="nuscenes/NDS",
    compared=("nuscenes/NDS", "nuscenes/mAP"),
    annotation_fields=FIELDS,
    shown_losses=("loss_class", "loss_bbox"),
    data=DataSource(
        images_of,
        class_names,
        fingerprint,
        label_rows,
        named_by="sample_token",
        check_evaluation=NuScenesEvaluator,  # which refuses what it could not evaluate on
    ),
    build_mapper=build_mapper,
    sees="keyframes",
    build_reader=build_reader,
    build_criterion=build_criterion,
    build_evaluator=build_evaluator,
    results_file=RESULTS,
    read_results=read_nuscenes_results,
    records=records,
    columns=("class", "score", *NUMBERS),
    flat_record=flat_record,
    coco_record=coco_record,
    as_polygons=None,
    picture_of=FramePicture.of_input,
    presentation=Presentation(
        draw,
        fit=FramePicture.fit,
        tile_side=1400,
        columns=1,
        average="mAP",
        at_threshold="AP at 2 m",
        overlap="within 2 m",
        summary=("NDS", "mAP", *ERRORS),
        errors=tuple(ERRORS),
        by_size={},
        few={},
    ),
    of_queries=of_queries,
    flip=None,
    merge=None,
    fuse_flips=None,
    exported=None,
)
