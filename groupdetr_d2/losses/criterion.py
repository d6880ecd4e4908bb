"""Match, then add up weighted losses: shared by detection, segmentation and 3D."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..groups import QueryGroups
from ..structures import Denoised, Matches, Predictions, Proposals, Targets
from .matcher import match_groups


class Term(NamedTuple):
    """A weighted matching cost or loss."""

    fn: Callable[..., Tensor]
    weight: float


class SetCriterion(nn.Module):
    """Weighted losses of all decoder layers.

    Args:
        matches_per_target: how many queries of a group answer for a target: 1 in every DETR, more
            in naive one-to-many assignment (the Group DETR paper's Table 7 b). Denoising and first
            stages keep one.

    Attributes:
        match_seconds: what the matching of the last batch took, waiting for the device included.
        non_finite_images: positions in the last batch of images with costs that were NaN or
            infinite.
    """

    def __init__(self, costs: list[Term], losses: dict[str, Term], matches_per_target: int = 1):
        super().__init__()
        self.matches_per_target = matches_per_target
        self.costs = costs
        self.losses = losses
        self.match_seconds = 0.0
        self.non_finite_images: list[int] = []

    def forward(
        self,
        predictions: Predictions,
        targets: Targets,
        groups: QueryGroups,
        num_targets: float | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            num_targets: what the losses are the mean over, if not this batch's targets (their mean
                over processes): those of a larger batch that this one is a part of.

        Returns:
            weighted losses; ``_i`` marks those of layer ``i``, the last layer's are unmarked;
            ``_dn`` marks those of denoising queries, ``_enc`` those of a first stage.
        """
        self.match_seconds, self.non_finite_images = 0.0, []
        if num_targets is None:
            num_targets = average_over_processes(sum(targets.counts))
        losses = self._matched_losses(predictions, targets, groups, num_targets)
        if predictions.denoised is not None:
            normalizer = groups.normalizer(num_targets)
            losses |= self._denoising_losses(predictions.denoised, targets, normalizer)
        if predictions.proposals is not None:
            losses |= self._proposal_losses(predictions.proposals, targets, num_targets)
        return losses

    def _matched_losses(
        self, predictions: Predictions, targets: Targets, groups: QueryGroups, num_targets: float
    ) -> dict[str, Tensor]:
        """The mean is over matches: over each target as often as it is matched."""
        targets = targets.repeated(self.matches_per_target)
        matches = self.match(predictions, targets, groups)
        normalizer = groups.normalizer(num_targets * self.matches_per_target)
        return self._weighted(predictions, targets, matches, normalizer, "")

    def _denoising_losses(
        self, denoised: Denoised, targets: Targets, normalizer: float
    ) -> dict[str, Tensor]:
        """Each denoising query answers for its own target; the mean is over repetitions too.

        The number of targets is the mean over processes, as DINO has it; DN-DETR's code takes
        each process's own.
        """
        predictions = Predictions(denoised.logits, denoised.boxes)
        fixed = (denoised.query, denoised.target)
        query, target = (x.expand(len(denoised.logits), -1) for x in fixed)
        matches = Matches(denoised.image, query, target)
        return self._weighted(
            predictions, targets, matches, denoised.repetitions * normalizer, "_dn"
        )

    def _proposal_losses(
        self, proposals: Proposals, targets: Targets, num_targets: float
    ) -> dict[str, Tensor]:
        """Those of the first stage, matched per group like the rest."""
        if proposals.class_agnostic:
            targets = replace(targets, labels=torch.zeros_like(targets.labels))
        predictions = Predictions(proposals.logits, proposals.boxes)
        matches = self.match(predictions, targets, proposals.groups)
        normalizer = proposals.groups.normalizer(num_targets)
        return self._weighted(predictions, targets, matches, normalizer, "_enc")

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
            cost = sum(weight * fn(image, target) for fn, weight in self.costs)
            costs.append(torch.as_tensor(cost))
        matches = match_groups(costs, groups)
        self.match_seconds += time.perf_counter() - start
        self.non_finite_images += matches.non_finite_images
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
