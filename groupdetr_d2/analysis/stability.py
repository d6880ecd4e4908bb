"""The change of the matching from checkpoint to checkpoint (the paper's Figure 5).

The instability score is DN-DETR's (Li et al., CVPR 2022, Sec. 3.1): in an image, the number of
queries whose target is another one (or none) than at the checkpoint before; its mean over images.
The primary group's queries and the last decoder layer count.
"""

import argparse
import logging
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import GroupCheckpointer
from .output import new_figure, save_figure, write_csv
from .runs import split_label
from .trained_model import TrainedModel, check_one_to_one, checkpoints_of, load, matches_of

logger = logging.getLogger(__name__)
NOTHING = -1  # the target of a query that has none


def run(args: argparse.Namespace) -> str:
    """Matches the test images with every numbered checkpoint of every run."""
    rows: list[dict] = []
    for label, folder in map(split_label, args.run):
        scores = instability(folder, args.num_images, args.opts)
        rows += [{"run": label, "iteration": i, "instability": s} for i, s in scores.items()]
    out = Path(args.out)
    write_csv(out / "stability.csv", rows)
    figure, axes = new_figure("changes of the matching", "iteration", "instability score")
    texts = []
    for label in dict.fromkeys(row["run"] for row in rows):
        points = [(r["iteration"], r["instability"]) for r in rows if r["run"] == label]
        axes.plot(*zip(*points, strict=True), marker=".", label=label)
        mean = sum(score for _, score in points) / len(points)
        texts.append(f"{label} {mean:.2f} (last {points[-1][1]:.2f})")
    axes.legend()
    save_figure(figure, out / "stability.png")
    return "queries of an image whose target changed, mean over checkpoints: " + ", ".join(texts)


def instability(folder: str, num_images: int | None, opts: list[str]) -> dict[int, float]:
    """Computes the score at each numbered checkpoint but the first."""
    scores, before, trained = {}, None, None
    for iteration, path in checkpoints_of(folder).items():
        if trained is None:
            trained = load(path, opts)
            check_one_to_one(trained)
        else:
            GroupCheckpointer(trained.model).load(str(path), checkpointables=[])
        assigned = assigned_targets(trained, num_images)
        if before is not None:
            scores[iteration] = changed_queries(before, assigned)
            logger.info("%s: instability %.3f", path, scores[iteration])
        before = assigned
    return scores


@torch.no_grad()
def assigned_targets(trained: TrainedModel, num_images: int | None) -> list[Tensor]:
    """Finds for each image the targets (N,) of the primary group's queries, or NOTHING."""
    model, groups = trained.model, trained.model.groups.primary()
    assigned = []
    for image in trained.annotated_images(num_images):
        targets = model.build_targets([image])
        matches = matches_of(model, model.predict([image], groups), targets, groups)
        target_of = torch.full((groups.num_queries,), NOTHING)
        target_of[matches.query[-1].cpu()] = matches.target[-1].cpu()
        assigned.append(target_of)
    return assigned


def changed_queries(before: list[Tensor], after: list[Tensor]) -> float:
    """Averages over images the number of queries with another target."""
    changes = [(old != new).sum().item() for old, new in zip(before, after, strict=True)]
    return sum(changes) / len(changes)
