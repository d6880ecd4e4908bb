"""Denoising: noised targets as extra queries in training.

DN-DETR (Li et al., CVPR 2022, arXiv 2203.01305), and DINO's contrastive form (Zhang et al., ICLR
2023, arXiv 2203.03605). Every group of queries is a complete query set with a denoising part of its
own, [P | N], and with its own noise (the Group DETR paper's footnote 3). P is R repetitions of as
many slots as the fullest image of the batch has targets (with a positive and a negative copy of
each: twice as many); R follows from the wanted number of denoising queries.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..groups import QueryGroups
from ..layers.box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from ..layers.position_encoding import inverse_sigmoid
from ..structures import Denoised, Predictions, Queries, Targets


@dataclass
class Noise:
    """Random numbers in [0, 1) for K groups and R copies of T targets."""

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
    repetitions: int
    background: bool  # whether the queries that `query` does not name are background

    def separate(self, predictions: Predictions, groups: QueryGroups) -> Predictions:
        """Splits predictions of (L, B, K*(P+N), .) into denoised targets and matched queries."""
        logits_dn, logits = groups.split_denoising(predictions.logits)
        boxes_dn, boxes = groups.split_denoising(predictions.boxes)
        image, query = self.image, self.query
        if not self.background:  # the noised targets alone, as the queries of one image
            logits_dn, boxes_dn = (x[:, None, image, query] for x in (logits_dn, boxes_dn))
            image, query = torch.zeros_like(image), torch.arange(len(query), device=query.device)
        denoised = Denoised(logits_dn, boxes_dn, image, query, self.target, self.repetitions)
        return Predictions(logits, boxes, denoised)


class Denoising(nn.Module, ABC):
    """Label embeddings, and noised targets made of them; what kinds differ in is abstract.

    Args:
        num_queries: noised targets wanted per group; with a negative copy each, twice as many.
        label_noise: probability that a label is drawn anew from all classes.
        box_noise: how far boxes move, see `move`.
        eps: of the inverse sigmoid that bounds noised boxes.
    """

    copies: int  # of a target in a repetition; the first stands for it
    background: bool  # whether all other denoising queries are background
    indicator: int  # channels at the content's end that tell noised targets (1) from others (0)

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
        # the last row stands for no label yet
        self.label_embedding = nn.Embedding(num_classes + 1, d_model - self.indicator)
        self.num_classes, self.num_queries = num_classes, num_queries
        self.label_noise, self.box_noise, self.eps = label_noise, box_noise, eps

    def forward(
        self, queries: Queries, groups: QueryGroups, targets: Targets | None
    ) -> tuple[Queries, QueryGroups, Slots | None]:
        """
        Args:
            queries: (B, K*N, .).
            targets: None at inference, where no query is added.

        Returns:
            queries of (B, K*(P+N), .), their groups, and where the noised targets stand.
        """
        queries = self.prepare(queries)
        if targets is None:
            return queries, groups, None
        width = max(targets.counts, default=0)
        repetitions = max(1, self.num_queries // max(width, 1))
        copies = repetitions * self.copies
        groups = replace(groups, num_denoising=copies * width)
        shape = (groups.num_groups, copies, len(targets.labels))
        noise = Noise.draw(shape, queries.content.device)
        image, places = locate_slots(targets, groups, copies)
        labels, boxes = self.add_noise(targets, noise)  # (K, R*copies, T), (..., 4)
        queries = self._join(queries, groups, (image, places), self.embed(labels, 1.0), boxes)
        mask = denoising_mask(repetitions, self.copies * width, groups, queries.content.device)
        places = places[:, :: self.copies]  # of the copies that stand for their target
        target = torch.arange(shape[2], device=image.device).expand(places.shape)
        located = (image.expand(places.shape), places, target)
        image, query, target = (x.flatten() for x in located)
        slots = Slots(image, query, target, repetitions, self.background)
        return replace(queries, attn_mask=mask), groups, slots

    @abstractmethod
    def prepare(self, queries: Queries) -> Queries:
        """The matched queries, with the content that they have in this kind."""

    @abstractmethod
    def move(self, boxes: Tensor, amount: Tensor) -> Tensor:
        """(T, 4) boxes by amounts (K, R*copies, T, 4) in [-1, 1) of the largest noise."""

    def embed(self, labels: Tensor, indicator: float) -> Tensor:
        """(...,) labels -> (..., C): the embedding, then the indicator channel."""
        embedded = self.label_embedding(labels)
        channel = embedded.new_full((*labels.shape, self.indicator), indicator)
        return torch.cat([embedded, channel], -1)

    def add_noise(self, targets: Targets, noise: Noise) -> tuple[Tensor, Tensor]:
        """Noised labels (K, R, T) and boxes (K, R, T, 4); the targets themselves stay."""
        drawn = (noise.label * self.num_classes).long().clamp(max=self.num_classes - 1)
        labels = torch.where(noise.flip < self.label_noise, drawn, targets.labels)
        boxes = self.move(targets.boxes, 2 * noise.box - 1)
        return labels, inverse_sigmoid(boxes, self.eps).sigmoid()

    def _join(self, queries, groups, where, content, boxes) -> Queries:
        """Noised targets into their slots, ahead of each group's matched queries.

        Slots without a target have no content and the box of the whole image's middle; they are
        seen by their repetition, as in the official code.
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


def shift_and_scale(boxes: Tensor, amount: Tensor, noise: float) -> Tensor:
    """Moves centres by up to `noise` times half the size, and changes sizes by up to `noise`."""
    size = boxes[:, 2:]
    reach = torch.cat([size / 2, size], -1) * noise  # (T, 4)
    return (boxes + amount * reach).clamp(0, 1)


class LabelDenoising(Denoising):
    """DN-DETR's on DAB-DETR: matched queries too take their content from the label embedding."""

    copies, background, indicator = 1, False, 1

    def prepare(self, queries: Queries) -> Queries:
        """Their label is the one that stands for none."""
        unknown = torch.full(queries.content.shape[:2], self.num_classes)
        unknown = unknown.to(queries.content.device, non_blocking=True)  # (B, K*N)
        return replace(queries, content=self.embed(unknown, 0.0))

    def move(self, boxes: Tensor, amount: Tensor) -> Tensor:
        """See :func:`shift_and_scale`."""
        return shift_and_scale(boxes, amount, self.box_noise)


class ContentDenoising(Denoising):
    """DN-DETR's on DAB-Deformable-DETR: matched queries keep the content that they learn."""

    copies, background, indicator = 1, False, 1

    def prepare(self, queries: Queries) -> Queries:
        """As they are."""
        return queries

    def move(self, boxes: Tensor, amount: Tensor) -> Tensor:
        """See :func:`shift_and_scale`."""
        return shift_and_scale(boxes, amount, self.box_noise)


class ContrastiveDenoising(Denoising):
    """DINO's: each repetition has a positive and a negative copy of each target.

    Negatives are moved farther and answer for nothing, as do slots without a target.
    """

    copies, background, indicator = 2, True, 0

    def prepare(self, queries: Queries) -> Queries:
        """As they are."""
        return queries

    def move(self, boxes: Tensor, amount: Tensor) -> Tensor:
        """Moves borders by up to `box_noise` times half the size, those of negatives by more.

        Copies are positive and negative by turns. Borders may cross.
        """
        amount = amount.unflatten(1, (-1, self.copies))  # (K, R, 2, T, 4)
        positive, negative = amount.unbind(2)
        negative = negative + torch.where(negative < 0, -1.0, 1.0)
        amount = torch.stack([positive, negative], 2).flatten(1, 2)
        reach = (boxes[:, 2:] / 2).repeat(1, 2) * self.box_noise  # (T, 4)
        return box_xyxy_to_cxcywh((box_cxcywh_to_xyxy(boxes) + amount * reach).clamp(0, 1))


def locate_slots(targets: Targets, groups: QueryGroups, copies: int) -> tuple[Tensor, Tensor]:
    """The image (T,) of each target, and its slots (K, copies, T) on the axis of K*P.

    Target j of an image stands at slot ``c * width + j`` of its copy c.
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
    """(P+N, P+N) bool, True where a query of a group may not look.

    Matched queries see no denoising query, which knows too much; repetitions do not see each other.
    """
    part = torch.arange(groups.group_size, device=device).div(max(width, 1), rounding_mode="floor")
    part = part.clamp(max=repetitions)  # 0 .. R-1, and R for matched queries
    part[groups.num_denoising :] = repetitions
    other = part[:, None] != part[None, :]
    return other & (part[None, :] != repetitions)


def build_denoising(cfg, kind: type[Denoising], eps: float) -> Denoising | None:
    """From MODEL.DETR.DENOISING; None if NUM_QUERIES is 0."""
    denoising = cfg.MODEL.DETR.DENOISING
    if not denoising.NUM_QUERIES:
        return None
    return kind(
        num_classes=cfg.MODEL.DETR.NUM_CLASSES,
        d_model=cfg.MODEL.DETR.HIDDEN_DIM,
        num_queries=denoising.NUM_QUERIES,
        label_noise=denoising.LABEL_NOISE,
        box_noise=denoising.BOX_NOISE,
        eps=eps,
    )
