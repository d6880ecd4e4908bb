"""The number of boxes that a model leaves on an object, and what NMS would change.

For one checkpoint or several, for instance of one-to-one, naive one-to-many and group-wise
assignment (the paper's Table 7).
"""

import argparse
from pathlib import Path

import torch
from detectron2.structures import Instances, pairwise_iou

from ..evaluation.fusion import suppress
from ..inference.by_group import detections_by_group
from .group_ap import SetEvaluation
from .output import new_figure, save_figure, write_csv
from .runs import split_label
from .trained_model import TrainedModel, check_sees_images, load

SAME_OBJECT = 0.5  # IoU above which a box of the right class is one of an object's boxes


def run(args: argparse.Namespace) -> str:
    """Writes one row per checkpoint: AP with and without NMS, boxes per object."""
    rows = []
    for label, path in map(split_label, args.weights):
        rows.append({"model": label, **measure(load(path, args.opts), args)})
    out = Path(args.out)
    write_csv(out / "duplicates.csv", rows)
    figure, axes = new_figure("boxes on an object that has any", "", "boxes per object")
    axes.bar([r["model"] for r in rows], [r["boxes per found object"] for r in rows])
    axes.axhline(1, color="black", linewidth=1, linestyle="--")
    save_figure(figure, out / "duplicates.png")
    return "; ".join(
        f"{r['model']}: {r['boxes per found object']:.2f} boxes per found object, "
        f"AP {r['AP']:.1f}, with NMS {r['AP with NMS']:.1f}"
        for r in rows
    )


@torch.no_grad()
def measure(trained: TrainedModel, args: argparse.Namespace) -> dict:
    """Measures the detections of the primary group."""
    check_sees_images(trained.task, trained.weights)
    model, counts = trained.model, []
    as_found, suppressed = SetEvaluation(trained), SetEvaluation(trained)
    groups = model.groups.primary()
    for image in trained.annotated_images(args.num_images):
        (instances,) = detections_by_group(model, model.predict([image], groups), groups, image)
        as_found.add(image, instances)
        suppressed.add(image, suppress(instances))
        counts += boxes_per_object(instances[instances.scores >= args.threshold], image)
    whole = args.num_images is None
    ap = [x.metrics(whole=whole)["AP"] for x in (as_found, suppressed)]
    hit = [n for n in counts if n]
    return {
        "objects": len(counts),
        "objects found": len(hit),
        "boxes per found object": sum(hit) / max(len(hit), 1),
        "AP": ap[0],
        "AP with NMS": ap[1],
    }


def boxes_per_object(found: Instances, image: dict) -> list[int]:
    """Counts for each object of an image the boxes of its class on it; a box counts once."""
    truth = image["instances"]
    height, width = truth.image_size
    boxes = truth.gt_boxes.clone()
    boxes.scale(image["width"] / width, image["height"] / height)
    if not len(found) or not len(truth):
        return [0] * len(truth)
    overlap = pairwise_iou(boxes, found.pred_boxes)  # (objects, boxes)
    overlap = overlap * (truth.gt_classes[:, None] == found.pred_classes[None])
    best, owner = overlap.max(0)
    return torch.bincount(owner[best > SAME_OBJECT], minlength=len(truth)).tolist()
