"""Every query group used alone at inference, and all of them fused (the paper's Figure 4)."""

import argparse
import contextlib
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Instances

from ..errors import UserError
from ..evaluation.fusion import merge_by_fusion, merge_by_nms
from ..inference.by_group import detections_by_group
from .output import new_figure, save_figure, write_csv
from .trained_model import TrainedModel, load

SIZES = ("APs", "APm", "APl")  # which COCO has beside the numbers of a summary
FUSIONS = {"all, NMS": merge_by_nms, "all, fused": merge_by_fusion}


def run(args: argparse.Namespace) -> str:
    """Evaluates all groups in one pass over the images."""
    trained = load(args.weights, args.opts)
    results = evaluate_groups(trained, args.num_images)
    metric = trained.task.metric.partition("/")[2]
    shown = dict.fromkeys((metric, *trained.task.presentation.summary, *SIZES))
    rows = [
        {"group": name, **{m: found[m] for m in shown if m in found}}
        for name, found in results.items()
    ]
    out = Path(args.out)
    write_csv(out / "groups.csv", rows)
    alone = np.array([r[metric] for r in rows if isinstance(r["group"], int)])
    draw(rows, metric, float(np.median(alone)), out / "groups.png")
    spread = np.abs(alone - np.median(alone)).max()
    fused = [f"{name} {results[name][metric]:.2f}" for name in FUSIONS if name in results]
    median = f"median {np.median(alone):.2f}, at most {spread:.2f} from it"
    return f"{trained.weights}: {metric} of {len(alone)} groups alone: {median}" + (
        f"; of all together: {', '.join(fused)}" if fused else ""
    )


@torch.no_grad()
def evaluate_groups(trained: TrainedModel, num_images: int | None) -> dict:
    """Computes the metrics by group number, and by the name of a fusion of all groups.

    Masks are not fused.
    """
    model, groups = trained.model, trained.model.groups.separate()
    if num_images is not None and trained.task.sees == "keyframes":
        raise UserError("nuScenes is evaluated on whole splits: leave --num-images out")
    fusions = FUSIONS if trained.task.merge is not None else {}
    evaluations: dict[int | str, SetEvaluation] = defaultdict(lambda: SetEvaluation(trained))
    for image in trained.annotated_images(num_images):
        alone = detections_by_group(model, model.predict([image], groups), groups, image)
        merged = {name: merge(alone, model.detections_per_image) for name, merge in fusions.items()}
        for name, instances in [*enumerate(alone), *merged.items()]:
            evaluations[name].add(image, instances)
    whole = num_images is None
    return {name: evaluation.metrics(whole=whole) for name, evaluation in evaluations.items()}


class SetEvaluation:
    """The task's metrics of detections that are given image by image."""

    def __init__(self, trained: TrainedModel):
        self.task = trained.task
        self.image_ids: list[int | str] = []
        self.evaluator = trained.task.build_evaluator(trained.dataset, None)
        self.evaluator.reset()

    def add(self, image: dict, instances: Instances) -> None:
        """Takes in the detections on an image."""
        self.image_ids.append(image["image_id"])
        self.evaluator.process([image], [{"instances": instances}])

    def metrics(self, *, whole: bool) -> dict[str, float]:
        """Computes the metrics; of these images alone, if they are not the `whole` set."""
        ids = None if whole else self.image_ids
        with contextlib.redirect_stdout(io.StringIO()):
            return self.task.metrics_of(self.evaluator.evaluate(img_ids=ids))


def draw(rows: list[dict], metric: str, median: float, path: Path) -> None:
    """Draws one bar per group, and the median as a line."""
    figure, axes = new_figure(f"{metric} of each query group", "group", metric)
    names = [str(row["group"]) for row in rows]
    colours = ["C0" if name.isdigit() else "C1" for name in names]
    axes.bar(names, [row[metric] for row in rows], color=colours)
    axes.axhline(median, color="black", linewidth=1, linestyle="--", label=f"median {median:.2f}")
    values = [row[metric] for row in rows]
    axes.set_ylim(max(0, min(values) - 2), max(values) + 1)
    axes.legend()
    save_figure(figure, path)
