"""Matching, then weighted losses: the same for detection, segmentation and 3D."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..distributed import average_over_processes
from ..groups import QueryGroups
from ..structures import Denoised, Matches, Predictions, Proposals, Targets
from .matcher import match_groups

Prepare = Callable[..., tuple[Predictions, Targets]]
Assign = Callable[[list[Tensor], QueryGroups], Matches]


class Term(NamedTuple):
    """A weighted matching cost or loss.

    Attributes:
        fn: the cost or loss; a loss returns sums.
        normalizer: what the sums of a loss are divided by, called as ``normalizer(counts, groups)``
            with the number of targets of each image. None divides by the number of targets times
            K, which is averaged over processes.
    """

    fn: Callable[..., Tensor]
    weight: float
    normalizer: Callable[[Sequence[int], QueryGroups], float] | None = None


@dataclass(frozen=True)
class Normalizers:
    """The divisors of the sums of losses.

    Attributes:
        of_targets: the number of targets times K.
        counts: targets of each image of the batch, or of the larger one that it is a part of.
    """

    of_targets: float
    counts: Sequence[int]
    groups: QueryGroups

    def of(self, term: Term) -> float:
        """The divisor of a term."""
        return term.normalizer(self.counts, self.groups) if term.normalizer else self.of_targets


class Losses(dict[str, Tensor]):
    """Weighted losses by name, as Detectron2's trainers read them, and how the matching went.

    Attributes:
        match_seconds: duration of the matching, the wait for the device included.
        non_finite_images: positions in the batch of images that had a matching cost that was NaN
            or infinite.
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None):
        super().__init__(values or {})
        self.match_seconds = 0.0
        self.non_finite_images: list[int] = []


def as_they_are(
    predictions: Predictions, targets: Targets, generator: torch.Generator | None
) -> tuple[Predictions, Targets]:
    """The default of `prepare`: costs and losses read predictions and targets directly."""
    return predictions, targets


class SetCriterion(nn.Module):
    """Weighted losses of all decoder layers.

    Args:
        costs: terms whose weighted sum is minimised by the matching.
        losses: terms of the loss by name.
        matches_per_target: how many queries of a group are matched with each target: 1 in every
            DETR, more in naive one-to-many assignment (the Group DETR paper's Table 7 b). Denoising
            queries and first stages keep one.
        prepare: called as ``prepare(predictions, targets, generator)`` before the matching, and
            returns the predictions and targets that costs and losses read. Work that they share is
            done here, such as the sampling of points from masks; its random numbers come from the
            generator (PyTorch's default one if it is None).
        assign: makes matches of the costs of each image, see :func:`match_groups`.
    """

    def __init__(
        self,
        costs: list[Term],
        losses: dict[str, Term],
        matches_per_target: int = 1,
        prepare: Prepare = as_they_are,
        assign: Assign = match_groups,
    ):
        super().__init__()
        self.matches_per_target, self.prepare, self.assign = matches_per_target, prepare, assign
        self.costs, self.losses = costs, losses

    def forward(
        self,
        predictions: Predictions,
        targets: Targets,
        groups: QueryGroups,
        num_targets: float | None = None,
        counts: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Computes the losses of a batch.

        Args:
            num_targets: number of targets that the losses are the mean over, if not this batch's
                (averaged over processes): that of a larger batch which this one is a part of.
            counts: targets of each image of that larger batch in this process.
            generator: source of the random numbers of `prepare`.

        Returns:
            weighted losses; the suffix ``_i`` marks decoder layer ``i`` (the last layer has none),
            ``_dn`` marks denoising queries and ``_enc`` a first stage.
        """
        if num_targets is None:
            num_targets = average_over_processes(sum(targets.counts))
        counts = targets.counts if counts is None else counts
        times = self.matches_per_target
        of_targets = groups.normalizer(num_targets * times)
        normalizers = Normalizers(of_targets, [times * n for n in counts], groups)
        losses = Losses()
        self._add_matched(losses, predictions, targets, normalizers, generator)
        if predictions.denoised is not None:
            normalizers = Normalizers(groups.normalizer(num_targets), counts, groups)
            self._add_denoised(losses, predictions.denoised, targets, normalizers, generator)
        if predictions.proposals is not None:
            groups = predictions.proposals.groups
            normalizers = Normalizers(groups.normalizer(num_targets), counts, groups)
            self._add_proposed(losses, predictions.proposals, targets, normalizers, generator)
        return losses

    def _add_matched(
        self,
        losses: Losses,
        predictions: Predictions,
        targets: Targets,
        normalizers: Normalizers,
        generator: torch.Generator | None,
    ) -> None:
        """Adds the losses of the object queries; a target counts as often as it is matched."""
        predictions, targets = self.prepare(predictions, targets, generator)
        targets = targets.repeated(self.matches_per_target)
        matches = self._timed_match(losses, predictions, targets, normalizers.groups)
        losses |= self._weighted(predictions, targets, matches, normalizers, "")

    def _add_denoised(
        self,
        losses: Losses,
        denoised: Denoised,
        targets: Targets,
        normalizers: Normalizers,
        generator: torch.Generator | None,
    ) -> None:
        """Adds the losses of the denoising queries, whose matches are fixed.

        The mean is over repetitions too. The number of targets is the mean over processes, as in
        DINO; DN-DETR's code takes that of each process.
        """
        predictions, targets = self.prepare(denoised.predictions, targets, generator)
        of_targets = normalizers.of_targets * denoised.repetitions
        normalizers = replace(normalizers, of_targets=of_targets)
        losses |= self._weighted(predictions, targets, denoised.matches, normalizers, "_dn")

    def _add_proposed(
        self,
        losses: Losses,
        proposals: Proposals,
        targets: Targets,
        normalizers: Normalizers,
        generator: torch.Generator | None,
    ) -> None:
        """Adds the losses of the first stage, matched per group like the object queries."""
        if proposals.class_agnostic:
            targets = replace(targets, labels=torch.zeros_like(targets.labels))
        predictions, targets = self.prepare(proposals.predictions, targets, generator)
        matches = self._timed_match(losses, predictions, targets, proposals.groups)
        losses |= self._weighted(predictions, targets, matches, normalizers, "_enc")

    def _weighted(
        self,
        predictions: Predictions,
        targets: Targets,
        matches: Matches,
        normalizers: Normalizers,
        suffix: str,
    ) -> dict[str, Tensor]:
        losses = {}
        for name, term in self.losses.items():
            sums = term.weight * term.fn(predictions, targets, matches)  # (L,)
            per_layer = sums / normalizers.of(term)
            for i, value in enumerate(per_layer.unbind()):
                layer = "" if i == len(per_layer) - 1 else f"_{i}"
                losses[name + suffix + layer] = value
        return losses

    def _timed_match(
        self, losses: Losses, predictions: Predictions, targets: Targets, groups: QueryGroups
    ) -> Matches:
        """Matches, and notes in `losses` how that went."""
        start = time.perf_counter()
        matches = self.match(predictions, targets, groups)
        losses.match_seconds += time.perf_counter() - start
        losses.non_finite_images += matches.non_finite_images
        return matches

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: Targets, groups: QueryGroups) -> Matches:
        """Matches queries with targets in every layer, group and image.

        Costs are computed image by image, each image against its own targets alone.
        """
        costs = []
        for b, target in enumerate(targets.of_images()):
            image = predictions.of_image(b)
            cost = sum(weight * fn(image, target) for fn, weight, _ in self.costs)
            costs.append(torch.as_tensor(cost))
        return self.assign(costs, groups)
