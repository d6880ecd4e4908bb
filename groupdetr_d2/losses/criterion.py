"""Match, then add up weighted losses: shared by detection, segmentation and 3D."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..groups import QueryGroups
from ..structures import Denoised, Matches, Predictions, Targets
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
            weighted losses; ``_i`` marks those of layer ``i``, the last layer's are unmarked;
            ``_dn`` marks those of denoising queries.
        """
        matches = self.match(predictions, targets, groups)
        normalizer = groups.normalizer(average_over_processes(sum(targets.counts)))
        losses = self._weighted(predictions, targets, matches, normalizer, "")
        if predictions.denoised is not None:
            losses |= self._denoising_losses(predictions.denoised, targets)
        return losses

    def _denoising_losses(self, denoised: Denoised, targets: Targets) -> dict[str, Tensor]:
        """Each denoising query answers for its own target; the mean is over them all.

        They count as the queries of one image, so that slots without a target do not enter. The
        normaliser is this process's own, as in the official code.
        """
        num_layers, num_denoised, _ = denoised.logits.shape
        predictions = Predictions(denoised.logits[:, None], denoised.boxes[:, None])  # (L, 1, M, .)
        index = torch.arange(num_denoised, device=denoised.target.device)
        matches = Matches(
            image=torch.zeros_like(index),
            query=index.expand(num_layers, -1),
            target=denoised.target.expand(num_layers, -1),
        )
        return self._weighted(predictions, targets, matches, max(num_denoised, 1), "_dn")

    def _weighted(
        self,
        predictions: Predictions,
        targets: Targets,
        matches: Matches,
        normalizer: float,
        mark: str,
    ) -> dict[str, Tensor]:
        losses = {}
        for name, (fn, weight) in self.losses.items():
            per_layer = weight * fn(predictions, targets, matches) / normalizer  # (L,)
            for i, value in enumerate(per_layer.unbind()):
                layer = "" if i == len(per_layer) - 1 else f"_{i}"
                losses[name + mark + layer] = value
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
