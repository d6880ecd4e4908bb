"""The queries of the K groups that are matched with the same object (the paper's Figure 3)."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.image_file import read_bgr
from ..evaluation.colours import class_colour
from ..layers.box_ops import box_cxcywh_to_xyxy
from . import mask_query_figure
from .output import write_csv
from .trained_model import TrainedModel, check_one_to_one, check_sees_images, load, matches_of

SIDE = 720  # of the drawn picture, in pixels


@dataclass
class Answers:
    """The queries that are matched with the objects of an image, in every group."""

    references: Tensor  # (K, T, 2) x and y in [0, 1], before the first decoder layer
    boxes: Tensor  # (K, T, 4) xyxy in [0, 1], predicted by the last one
    all_references: Tensor  # (K, N, 2) of all queries


def run(args: argparse.Namespace) -> str:
    """Draws one picture per image, and measures the distances between groups."""
    trained, out = load(args.weights, args.opts), Path(args.out)
    check_sees_images(trained.task, trained.weights)
    check_one_to_one(trained)
    if trained.task.with_masks:
        return mask_query_figure.run(args, trained)
    rows, near, far = [], [], []
    for image in trained.annotated_images(args.num_images):
        if not 0 < len(image["instances"]) <= trained.model.groups.num_queries:
            continue  # no object, or more than a group has queries
        answers = matched_queries(trained, image)
        picture = draw(image, answers)
        cv2.imwrite(str(out / f"queries_{image['image_id']}.png"), picture)
        rows += rows_of(image, answers)
        near.append(spread_of(answers.references))
        far.append(spread_of(answers.all_references))
    if not rows:
        return f"none of the {args.num_images} images has an object"
    write_csv(out / "queries.csv", rows)
    return (
        f"{trained.weights}: reference points of different groups that answer for one object are "
        f"{np.mean(near):.3f} of the image's size apart, those of any two queries of different "
        f"groups {np.mean(far):.3f}"
    )


@torch.no_grad()
def matched_queries(trained: TrainedModel, image: dict) -> Answers:
    """Matches the last layer of every group with the image's objects."""
    model, groups = trained.model, trained.model.groups.separate()
    memory = model.encode([image])
    predictions: Any = model.head.decode(memory, groups)
    targets = model.build_targets([image])
    matches = matches_of(model, predictions, targets, groups)
    query = matches.by_target(len(targets.labels))[-1].T  # (K, T)
    reference = model.head.queries(memory, groups).reference[0, :, :2]  # (K*N, 2)
    boxes = box_cxcywh_to_xyxy(predictions.boxes[-1, 0])  # (K*N, 4)
    return Answers(reference[query].cpu(), boxes[query].cpu(), groups.per_group(reference, 0).cpu())


def spread_of(points: Tensor) -> float:
    """Averages the distance between points (K, M, 2) of different groups.

    For objects, group k's point of an object is compared with the other groups' of the same one;
    for all queries, index by index, whose order means nothing, so that these are random pairs.
    """
    first, second = torch.triu_indices(len(points), len(points), offset=1)
    if not len(first):
        return 0.0
    return (points[first] - points[second]).norm(dim=-1).mean().item()


def rows_of(image: dict, answers: Answers) -> list[dict]:
    """Lists one row per object and group."""
    rows = []
    for group, (points, boxes) in enumerate(zip(answers.references, answers.boxes, strict=True)):
        for index, (point, box) in enumerate(zip(points.tolist(), boxes.tolist(), strict=True)):
            place = dict(zip(("x", "y", "x0", "y0", "x1", "y1"), point + box, strict=True))
            rows.append({"image": image["image_id"], "object": index, "group": group, **place})
    return rows


def draw(image: dict, answers: Answers) -> np.ndarray:
    """Draws the truth in white, boxes and reference points of a group in its colour."""
    picture = read_bgr(image["file_name"])
    scale = SIDE / max(picture.shape[:2])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    picture = (0.6 * picture).astype(np.uint8)
    height, width = picture.shape[:2]
    truth = image["instances"]
    size = np.array([width, height, width, height])
    own = np.array([*truth.image_size[::-1]] * 2)
    for box in truth.gt_boxes.tensor.numpy() / own * size:
        _rectangle(picture, box, (255, 255, 255), 2)
    for group, (points, boxes) in enumerate(zip(answers.references, answers.boxes, strict=True)):
        colour = class_colour(group)
        for point, box in zip(points.numpy(), boxes.numpy(), strict=True):
            _rectangle(picture, box * size, colour, 1)
            center = tuple(int(v) for v in point * size[:2])
            cv2.circle(picture, center, 4, colour, -1, cv2.LINE_AA)
            cv2.circle(picture, center, 4, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def _rectangle(picture: np.ndarray, box_xyxy: np.ndarray, colour, thickness: int) -> None:
    x0, y0, x1, y1 = (int(round(float(v))) for v in box_xyxy)
    cv2.rectangle(picture, (x0, y0), (x1, y1), colour, thickness, cv2.LINE_AA)
