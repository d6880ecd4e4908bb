"""Match, then add up weighted losses: shared by detection, segmentation and 3D."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..groups import QueryGroups
from ..structures import Matches, Predictions, Targets
from .matcher import match_groups


class Term(NamedTuple):
    """A weighted matching cost or loss."""

    fn: Callable[..., Tensor]
    weight: float


class SetCriterion(nn.Module):
    """Weighted losses of all decoder layers.

    Attributes:
        match_seconds: what the last matching took, waiting for the device included.
    """

    def __init__(self, costs: list[Term], losses: dict[str, Term]):
        super().__init__()
        self.costs = costs
        self.losses = losses
        self.match_seconds = 0.0

    def forward(
        self, predictions: Predictions, targets: Targets, groups: QueryGroups
    ) -> dict[str, Tensor]:
        """
        Returns:
            weighted losses; ``_i`` marks those of layer ``i``, the last layer's are unmarked.
        """
        matches = self.match(predictions, targets, groups)
        normalizer = groups.normalizer(average_over_processes(sum(targets.counts)))
        losses = {}
        for name, (fn, weight) in self.losses.items():
            per_layer = weight * fn(predictions, targets, matches) / normalizer  # (L,)
            for i, value in enumerate(per_layer.unbind()):
                losses[name if i == len(per_layer) - 1 else f"{name}_{i}"] = value
        return losses

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: Targets, groups: QueryGroups) -> Matches:
        """The matches of every layer, group and image.

        Costs are computed image by image, each against its own targets alone.
        """
        start = time.perf_counter()
        costs = []
        for b, target in enumerate(_per_image(targets)):
            image = Predictions(predictions.logits[:, b], predictions.boxes[:, b])
            costs.append(sum(weight * fn(image, target) for fn, weight in self.costs))
        matches = match_groups(costs, groups)
        self.match_seconds = time.perf_counter() - start
        return matches


def _per_image(targets: Targets) -> list[Targets]:
    labels, boxes = targets.labels.split(targets.counts), targets.boxes.split(targets.counts)
    return [Targets(la, bo, [len(la)]) for la, bo in zip(labels, boxes, strict=True)]


def average_over_processes(count: float) -> float:
    """The mean of a number over the processes of the training."""
    if not (dist.is_available() and dist.is_initialized()):
        return count
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()
