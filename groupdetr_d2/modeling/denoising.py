"""Denoising (DN-DETR, Li et al., CVPR 2022, arXiv 2203.01305): noised targets as extra queries.

Every group of queries is a complete query set with a denoising part of its own, [P | N], and with
its own noise (the Group DETR paper's footnote 3). P is R repetitions of as many slots as the
fullest image of the batch has targets; R follows from the wanted number of denoising queries.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..groups import QueryGroups
from ..layers.position_encoding import inverse_sigmoid
from ..structures import Denoised, Predictions, Queries, Targets


@dataclass
class Noise:
    """Random numbers in [0, 1) for K groups and R repetitions of T targets."""

    flip: Tensor  # (K, R, T) whether a label changes
    label: Tensor  # (K, R, T) what it changes to
    box: Tensor  # (K, R, T, 4) how a box changes

    @staticmethod
    def draw(shape: tuple[int, int, int], device: torch.device) -> "Noise":
        """From torch's default generator."""
        flip, label = torch.rand(2, *shape, device=device)
        return Noise(flip, label, torch.rand(*shape, 4, device=device))


@dataclass
class Slots:
    """Where each noised target stands among the denoising queries."""

    image: Tensor  # (M,)
    query: Tensor  # (M,) on the axis of all groups' denoising queries, K*P
    target: Tensor  # (M,) index into the batch's T targets

    def separate(self, predictions: Predictions, groups: QueryGroups) -> Predictions:
        """Splits predictions of (L, B, K*(P+N), .) into denoised targets and matched queries."""
        logits_dn, logits = groups.split_denoising(predictions.logits)
        boxes_dn, boxes = groups.split_denoising(predictions.boxes)
        picked = (slice(None), self.image, self.query)
        return Predictions(
            logits, boxes, Denoised(logits_dn[picked], boxes_dn[picked], self.target)
        )


class Denoising(nn.Module):
    """Label embeddings with an indicator channel, and noised targets made of them.

    Args:
        num_queries: denoising queries wanted per group.
        label_noise: probability that a label is drawn anew from all classes.
        box_noise: largest shift of a box's centre, relative to half its size, and largest change
            of its size, relative to it.
        eps: of the inverse sigmoid that bounds noised boxes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        d_model: int,
        num_queries: int,
        label_noise: float,
        box_noise: float,
        eps: float,
    ):
        super().__init__()
        # the last row is the content of matched queries, which stand for no label yet
        self.label_embedding = nn.Embedding(num_classes + 1, d_model - 1)
        self.num_classes, self.num_queries = num_classes, num_queries
        self.label_noise, self.box_noise, self.eps = label_noise, box_noise, eps

    def forward(
        self, queries: Queries, groups: QueryGroups, targets: Targets | None
    ) -> tuple[Queries, QueryGroups, Slots | None]:
        """
        Args:
            queries: (B, K*N, .), whose content is replaced.
            targets: None at inference, where no query is added.

        Returns:
            queries of (B, K*(P+N), .), their groups, and where the noised targets stand.
        """
        unknown = torch.full(queries.content.shape[:2], self.num_classes)
        unknown = unknown.to(queries.content.device, non_blocking=True)  # (B, K*N)
        queries = replace(queries, content=self._embed(unknown, indicator=0.0))
        if targets is None:
            return queries, groups, None
        width = max(targets.counts, default=0)
        repetitions = max(1, self.num_queries // max(width, 1))
        groups = replace(groups, num_denoising=repetitions * width)
        shape = (groups.num_groups, repetitions, len(targets.labels))
        noise = Noise.draw(shape, queries.content.device)
        image, slots = locate_slots(targets, groups, repetitions)
        labels, boxes = self.add_noise(targets, noise)  # (K, R, T), (K, R, T, 4)
        content = self._embed(labels, indicator=1.0)
        queries = self._join(queries, groups, (image, slots), content, boxes)
        mask = denoising_mask(repetitions, width, groups, queries.content.device)
        target = torch.arange(shape[2], device=image.device).expand(*shape[:2], -1)
        located = Slots(image.expand(shape).flatten(), slots.flatten(), target.flatten())
        return replace(queries, attn_mask=mask), groups, located

    def _embed(self, labels: Tensor, indicator: float) -> Tensor:
        """(...,) labels -> (..., C): the embedding, then the indicator channel."""
        embedded = self.label_embedding(labels)
        return torch.cat([embedded, embedded.new_full((*labels.shape, 1), indicator)], -1)

    def add_noise(self, targets: Targets, noise: Noise) -> tuple[Tensor, Tensor]:
        """Noised labels (K, R, T) and boxes (K, R, T, 4); the targets themselves stay."""
        drawn = (noise.label * self.num_classes).long().clamp(max=self.num_classes - 1)
        labels = torch.where(noise.flip < self.label_noise, drawn, targets.labels)
        size = targets.boxes[:, 2:]
        reach = torch.cat([size / 2, size], -1) * self.box_noise  # (T, 4)
        boxes = (targets.boxes + (2 * noise.box - 1) * reach).clamp(0, 1)
        return labels, inverse_sigmoid(boxes, self.eps).sigmoid()

    def _join(self, queries, groups, where, content, boxes) -> Queries:
        """Noised targets into their slots, ahead of each group's matched queries.

        Slots without a target have no content and the box of the whole image's middle; they are
        seen by their repetition, as in the official code, and carry no loss.
        """
        image, slots = where
        batch, _, d_model = queries.content.shape
        shape = (batch, groups.num_groups * groups.num_denoising)
        padded_content = content.new_zeros(*shape, d_model)
        padded_boxes = boxes.new_full((*shape, 4), 0.5)
        index = (image.expand(slots.shape), slots)  # (K, R, T) each
        padded_content = padded_content.index_put(index, content)
        padded_boxes = padded_boxes.index_put(index, boxes)
        per_group = (groups.num_groups, groups.num_denoising)
        return replace(
            queries,
            content=groups.join_denoising(padded_content.unflatten(1, per_group), queries.content),
            reference=groups.join_denoising(
                padded_boxes.unflatten(1, per_group), queries.reference
            ),
        )


def locate_slots(targets: Targets, groups: QueryGroups, repetitions: int) -> tuple[Tensor, Tensor]:
    """The image (T,) of each target, and its slots (K, R, T) on the axis of K*P.

    Target j of an image stands at slot ``r * width + j`` of repetition r.
    """
    device = targets.labels.device
    image = [b for b, count in enumerate(targets.counts) for _ in range(count)]
    within = [j for count in targets.counts for j in range(count)]
    image, within = torch.tensor([image, within], dtype=torch.long).to(device, non_blocking=True)
    group = torch.arange(groups.num_groups, device=device)[:, None, None]
    repetition = torch.arange(repetitions, device=device)[None, :, None]
    width = max(targets.counts, default=0)
    return image, group * groups.num_denoising + repetition * width + within


def denoising_mask(
    repetitions: int, width: int, groups: QueryGroups, device: torch.device
) -> Tensor:
    """(P+N, P+N) bool, True where a query of a group may not look.

    Matched queries see no denoising query, which knows too much; repetitions do not see each other.
    """
    part = torch.arange(groups.group_size, device=device).div(max(width, 1), rounding_mode="floor")
    part = part.clamp(max=repetitions)  # 0 .. R-1, and R for matched queries
    part[groups.num_denoising :] = repetitions
    other = part[:, None] != part[None, :]
    return other & (part[None, :] != repetitions)


def build_denoising(cfg, eps: float) -> Denoising | None:
    """From MODEL.DETR.DENOISING; None if NUM_QUERIES is 0."""
    denoising = cfg.MODEL.DETR.DENOISING
    if not denoising.NUM_QUERIES:
        return None
    return Denoising(
        num_classes=cfg.MODEL.DETR.NUM_CLASSES,
        d_model=cfg.MODEL.DETR.HIDDEN_DIM,
        num_queries=denoising.NUM_QUERIES,
        label_noise=denoising.LABEL_NOISE,
        box_noise=denoising.BOX_NOISE,
        eps=eps,
    )
