"""Denoising: noised targets as extra queries in training.

DN-DETR (Li et al., CVPR 2022, arXiv 2203.01305), and DINO's contrastive form (Zhang et al., ICLR
2023, arXiv 2203.03605). Every group of queries is a complete query set with a denoising part of its
own, [P | N], and with its own noise (the Group DETR paper's footnote 3).

The denoising part repeats the targets of an image R times (the papers call a repetition a denoising
group). A repetition has as many places as the fullest image of the batch has targets, or twice as
many where every target has a positive and a negative copy. R follows from the wanted number of
denoising queries.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..groups import QueryGroups
from ..structures import Denoised, Matches, Predictions, Queries, Targets, map_tensors


@dataclass
class Noise:
    """Random numbers in [0, 1) for K groups, R copies of the targets and T targets."""

    flip: Tensor  # (K, R, T) whether a label changes
    label: Tensor  # (K, R, T) which label it changes to
    reference: Tensor  # (K, R, T, D) how a reference moves

    @staticmethod
    def draw(shape: tuple[int, int, int], size: int, device: torch.device) -> "Noise":
        """Draws from PyTorch's default generator for K, R, T of `shape` and D of `size`."""
        flip, label = torch.rand(2, *shape, device=device)
        return Noise(flip, label, torch.rand(*shape, size, device=device))


@dataclass
class DenoisingLayout:
    """The position of each noised target among the denoising queries."""

    image: Tensor  # (M,)
    query: Tensor  # (M,) on the axis of all groups' denoising queries, K*P
    target: Tensor  # (M,) index into the batch's T targets
    repetitions: int
    background: bool  # whether the queries that are not in `query` are background

    def separate(self, predictions: Predictions, groups: QueryGroups) -> Predictions:
        """Splits predictions of (L, B, K*(P+N), .) into denoised targets and object queries."""
        denoising = map_tensors(predictions, lambda x: groups.split_denoising(x)[0])
        matched = map_tensors(predictions, lambda x: groups.split_denoising(x)[1])
        image, query = self.image, self.query
        if not self.background:  # the noised targets alone, as the queries of one image
            denoising = map_tensors(denoising, lambda x: x[:, None, image, query])
            image, query = torch.zeros_like(image), torch.arange(len(query), device=query.device)
        num_layers = len(predictions.logits)
        query, target = (x.expand(num_layers, -1) for x in (query, self.target))
        denoised = Denoised(denoising, Matches(image, query, target), self.repetitions)
        return replace(matched, denoised=denoised)


class ReferenceNoise(Protocol):
    """Moves the references of a task's targets; `size` is D, the numbers of a reference."""

    size: int

    def __call__(self, targets: Any, amount: Tensor) -> Tensor:
        """Returns references (K, R, T, D) for amounts (K, R, T, D) in [-1, 1) of the noise."""


class Denoising(nn.Module, ABC):
    """Label embeddings, and queries made from noised targets; the kinds are subclasses.

    Args:
        num_queries: noised targets wanted per group; with a negative copy each, twice as many.
        label_noise: probability that a label is drawn anew from all classes.
        reference_noise: moves the references of targets.
    """

    copies: int  # of a target in a repetition; the first one is matched with its target
    background: bool  # whether all other denoising queries are background
    indicator: int  # channels at the content's end that tell noised targets (1) from others (0)

    def __init__(
        self,
        *,
        num_classes: int,
        d_model: int,
        num_queries: int,
        label_noise: float,
        reference_noise: ReferenceNoise,
    ):
        super().__init__()
        # the last row is the label of queries that have none
        self.label_embedding = nn.Embedding(num_classes + 1, d_model - self.indicator)
        self.num_classes, self.num_queries = num_classes, num_queries
        self.label_noise, self.reference_noise = label_noise, reference_noise

    def forward(
        self, queries: Queries, groups: QueryGroups, targets: Targets | None
    ) -> tuple[Queries, QueryGroups, DenoisingLayout | None]:
        """Puts denoising queries ahead of each group's object queries.

        Args:
            queries: (B, K*N, .).
            targets: None at inference, where no query is added.

        Returns:
            queries of (B, K*(P+N), .), their groups, and where the noised targets are.
        """
        queries = self.prepare(queries)
        if targets is None:
            return queries, groups, None
        width, device = max(targets.counts, default=0), queries.content.device
        repetitions = max(1, self.num_queries // max(width, 1))
        copies = repetitions * self.copies
        groups = replace(groups, num_denoising=copies * width)
        shape = (groups.num_groups, copies, len(targets.labels))
        noise = Noise.draw(shape, self.reference_noise.size, device)
        image, query = locate_targets(targets, groups, copies)
        labels, references = self.add_noise(targets, noise)  # (K, R*copies, T), (..., D)
        index = (image.expand(query.shape), query)  # (K, R*copies, T) each
        queries = self._join(queries, groups, index, self.embed(labels, 1.0), references)
        mask = denoising_mask(repetitions, self.copies * width, groups, device)
        layout = self._layout(image, query[:, :: self.copies], repetitions)
        return replace(queries, attn_mask=mask), groups, layout

    @abstractmethod
    def prepare(self, queries: Queries) -> Queries:
        """Returns the object queries with the content that they have in this kind."""

    def embed(self, labels: Tensor, indicator: float) -> Tensor:
        """Embeds labels (...,) as content (..., C), the indicator channel last."""
        embedded = self.label_embedding(labels)
        channel = embedded.new_full((*labels.shape, self.indicator), indicator)
        return torch.cat([embedded, channel], -1)

    def add_noise(self, targets: Targets, noise: Noise) -> tuple[Tensor, Tensor]:
        """Returns noised labels (K, R, T) and references (K, R, T, D) of the targets."""
        drawn = (noise.label * self.num_classes).long().clamp(max=self.num_classes - 1)
        labels = torch.where(noise.flip < self.label_noise, drawn, targets.labels)
        return labels, self.reference_noise(targets, 2 * noise.reference - 1)

    def _layout(self, image: Tensor, query: Tensor, repetitions: int) -> DenoisingLayout:
        """The layout from images (T,) and the queries (K, R, T) that are matched with targets."""
        target = torch.arange(query.shape[2], device=image.device)
        image, target = (x.expand(query.shape).flatten() for x in (image, target))
        return DenoisingLayout(image, query.flatten(), target, repetitions, self.background)

    def _join(
        self,
        queries: Queries,
        groups: QueryGroups,
        index: tuple[Tensor, Tensor],
        content: Tensor,
        references: Tensor,
    ) -> Queries:
        """Joins noised targets (K, R, T, .) at their places with the object queries.

        Places without a target have no content and a reference in the image's middle; queries of
        their repetition see them, as in the official code.
        """
        batch, _, d_model = queries.content.shape
        shape = (batch, groups.num_groups * groups.num_denoising)
        padded_content = content.new_zeros(*shape, d_model)
        padded_references = references.new_full((*shape, references.shape[-1]), 0.5)
        padded_content = padded_content.index_put(index, content)
        padded_references = padded_references.index_put(index, references)
        per_group = (groups.num_groups, groups.num_denoising)
        return replace(
            queries,
            content=groups.join_denoising(padded_content.unflatten(1, per_group), queries.content),
            reference=groups.join_denoising(
                padded_references.unflatten(1, per_group), queries.reference
            ),
        )


class LabelDenoising(Denoising):
    """DN-DETR's kind for DAB-DETR: object queries take their content from the label embedding."""

    copies, background, indicator = 1, False, 1

    def prepare(self, queries: Queries) -> Queries:
        """Returns the queries with the embedding of "no label" as content."""
        unknown = torch.full(queries.content.shape[:2], self.num_classes)
        unknown = unknown.to(queries.content.device, non_blocking=True)  # (B, K*N)
        return replace(queries, content=self.embed(unknown, 0.0))


class ContentDenoising(Denoising):
    """DN-DETR's kind for DAB-Deformable-DETR: object queries keep their learned content."""

    copies, background, indicator = 1, False, 1

    def prepare(self, queries: Queries) -> Queries:
        """Returns the queries unchanged."""
        return queries


class ContrastiveDenoising(Denoising):
    """DINO's kind: each repetition has a positive and a negative copy of each target.

    Negative copies are moved farther. They are background, as are places without a target.
    """

    copies, background, indicator = 2, True, 0

    def prepare(self, queries: Queries) -> Queries:
        """Returns the queries unchanged."""
        return queries


def locate_targets(targets: Targets, groups: QueryGroups, copies: int) -> tuple[Tensor, Tensor]:
    """Finds the image (T,) of each target, and its queries (K, copies, T) on the axis of K*P.

    Target j of an image is query ``c * width + j`` of its copy c.
    """
    device = targets.labels.device
    image = [b for b, count in enumerate(targets.counts) for _ in range(count)]
    within = [j for count in targets.counts for j in range(count)]
    image, within = torch.tensor([image, within], dtype=torch.long).to(device, non_blocking=True)
    group = torch.arange(groups.num_groups, device=device)[:, None, None]
    copy = torch.arange(copies, device=device)[None, :, None]
    width = max(targets.counts, default=0)
    return image, group * groups.num_denoising + copy * width + within


def denoising_mask(
    repetitions: int, width: int, groups: QueryGroups, device: torch.device
) -> Tensor:
    """The attention mask of a group, (P+N, P+N) bool, True where a query may not attend.

    Object queries do not see denoising queries, which hold the solution; repetitions do not see
    each other.
    """
    part = torch.arange(groups.group_size, device=device).div(max(width, 1), rounding_mode="floor")
    part = part.clamp(max=repetitions)  # 0 .. R-1, and R for object queries
    part[groups.num_denoising :] = repetitions
    other = part[:, None] != part[None, :]
    return other & (part[None, :] != repetitions)
