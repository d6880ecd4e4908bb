"""Costs and losses of masks at sampled points (Mask2Former, Cheng et al., CVPR 2022, Sec. 3.2).

The masks of all queries are never formed. Bilinear sampling is linear, so it commutes with the
product of mask embeddings and mask features: matching costs come from features that were sampled
first, and masks are computed for matched queries alone. Points are x, y in [0, 1] of the padded
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..layers.point_sampling import sample_maps
from ..layers.position_encoding import at_least_float32
from ..layers.recompute import run_layer
from ..structures import Matches, PerImage, Predictions, Targets


@dataclass
class MaskTargets(Targets):
    """Objects with a class and a mask."""

    masks: Tensor  # (T, height, width) bool, of the padded images


@dataclass
class MaskPredictions(Predictions):
    """Class logits, the last of them for "no object", and what the masks are computed from.

    The logits of a query's mask are the product of its embedding and its image's features.
    """

    embeddings: Tensor  # (L, B, Q, C)
    features: PerImage  # (B, C, h, w)
    stride: int  # of the features in the padded image


@dataclass
class SampledMasks(MaskPredictions):
    """Predictions with the points at which masks are compared.

    `computed` holds what several losses read of the same matches.
    """

    points: Tensor  # (L, B, P, 2), where masks are compared in the matching
    num_candidates: int  # points of which the most uncertain ones are chosen for the losses
    num_uncertain: int  # how many of the P points of the losses these are
    generator: torch.Generator | None
    computed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class PointSampler:
    """The `prepare` of the criterion: draws one set of points for every image and decoder layer.

    Args:
        num_points: P, the points of the matching and of the losses.
        oversample_ratio: candidates of the losses' points, relative to P.
        importance_ratio: share of the losses' points that are the most uncertain candidates; the
            others are drawn anew.
    """

    num_points: int
    oversample_ratio: float
    importance_ratio: float

    def __call__(
        self, predictions: MaskPredictions, targets: MaskTargets, generator: torch.Generator | None
    ) -> tuple[SampledMasks, MaskTargets]:
        """Returns the predictions with points, and the targets as they are."""
        num_layers, batch = predictions.logits.shape[:2]
        own = {f.name: getattr(predictions, f.name) for f in fields(MaskPredictions)}
        features = at_least_float32(predictions.features.value)
        # sampled several times as fast in this order
        features = features.contiguous(memory_format=torch.channels_last)
        own["features"] = PerImage(features)
        sampled = SampledMasks(
            **own,
            points=draw_points((num_layers, batch, self.num_points), predictions, generator),
            num_candidates=int(self.num_points * self.oversample_ratio),
            num_uncertain=int(self.num_points * self.importance_ratio),
            generator=generator,
        )
        return sampled, targets


def draw_points(
    shape: Sequence[int], predictions: Predictions, generator: torch.Generator | None
) -> Tensor:
    """Draws points (..., 2) uniformly in the unit square, on the device of the predictions."""
    return torch.rand(*shape, 2, generator=generator, device=predictions.logits.device)


def mask_cost(
    predictions: SampledMasks, targets: MaskTargets, *, bce_weight: float, dice_weight: float
) -> Tensor:
    """Weighted sum of mean cross-entropy and dice of every predicted and true mask, (L, Q, T).

    All are compared at the same points of the image.
    """
    features = predictions.features.value[None]  # (1, C, h, w)
    masks = targets.masks[None].to(features.dtype)  # (1, T, height, width)
    costs = []
    for points, embeddings in zip(predictions.points, predictions.embeddings, strict=True):
        at_points = sample_maps(features, points[None])[0]  # (C, P)
        true = sample_maps(masks, points[None])[0].T  # (P, T)
        logits = embeddings.to(features.dtype) @ at_points  # (Q, P)
        bce = F.softplus(logits).sum(-1)[:, None] - logits @ true
        probabilities = logits.sigmoid_()
        overlap = 2 * (probabilities @ true) + 1
        dice = 1 - overlap / (probabilities.sum(-1)[:, None] + true.sum(0) + 1)
        costs.append(bce_weight / len(points) * bce + dice_weight * dice)
    return torch.stack(costs)


def bce_loss(predictions: SampledMasks, targets: MaskTargets, matches: Matches) -> Tensor:
    """Binary cross-entropy of matched masks, a mean over points, summed over pairs, (L,)."""
    return _at_uncertain_points(predictions, targets, matches)[0]


def dice_loss(predictions: SampledMasks, targets: MaskTargets, matches: Matches) -> Tensor:
    """Dice loss of matched masks (Milletari et al., 3DV 2016), summed over pairs, (L,)."""
    return _at_uncertain_points(predictions, targets, matches)[1]


def _at_uncertain_points(
    predictions: SampledMasks, targets: MaskTargets, matches: Matches
) -> tuple[Tensor, Tensor]:
    """Computes both losses of matched masks at the same points, once for the same matches."""
    known = predictions.computed.get(id(matches))
    if known is None:
        table = matches.by_target(len(targets.labels))  # (L, T, K)
        layers = zip(predictions.embeddings, table, strict=True)
        pairs = [_layer_losses(predictions, targets, *layer) for layer in layers]
        bce, dice = torch.stack(pairs, 1)
        known = predictions.computed[id(matches)] = (bce, dice)
    return known


def _layer_losses(
    predictions: SampledMasks, targets: MaskTargets, embeddings: Tensor, table: Tensor
) -> Tensor:
    """Computes the sums of both losses in one decoder layer, (2,).

    Masks are computed anew in backward: one layer's are in memory at a time.

    Args:
        embeddings: (B, Q, C).
        table: (T, K), the query of each group that answers for each target.
    """
    features, counts = predictions.features.value, targets.counts
    chosen = torch.cat(
        [
            own[query.clamp(min=0)]
            for own, query in zip(embeddings, table.split(counts), strict=True)
        ]
    ).to(features.dtype)  # (T, K, C)
    with torch.no_grad():
        points = _uncertain_points(predictions, masks_of_targets(chosen, features, counts))
        true = sample_maps(targets.masks[:, None].to(features.dtype), points.flatten(1, 2))
        true = true.view(points.shape[:-1])  # (T, K, P)
    args = (chosen, features, counts, points, true, table >= 0)
    return run_layer(_sums_at_points, *args, recompute=True)


def _sums_at_points(
    embeddings: Tensor,
    features: Tensor,
    counts: Sequence[int],
    points: Tensor,
    true: Tensor,
    is_pair: Tensor,
) -> Tensor:
    """Sums the losses of pairs (T, K) at points (T, K, P, 2) where the truth is (T, K, P)."""
    masks = masks_of_targets(embeddings, features, counts).flatten(0, 1)[:, None]
    logits = sample_maps(masks, points.flatten(0, 1)).view(true.shape)
    bce = F.binary_cross_entropy_with_logits(logits, true, reduction="none").mean(-1)
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * true).sum(-1) + 1
    dice = 1 - overlap / (probabilities.sum(-1) + true.sum(-1) + 1)
    return torch.stack([(bce * is_pair).sum(), (dice * is_pair).sum()])


def masks_of_targets(embeddings: Tensor, features: Tensor, counts: Sequence[int]) -> Tensor:
    """Computes mask logits (T, K, h, w) of embeddings (T, K, C), those of each image together.

    Args:
        features: (B, C, h, w).
        counts: targets of each image.
    """
    padded = pad_sequence(list(embeddings.split(list(counts))), batch_first=True)  # (B, most, K, C)
    masks = padded.flatten(1, 2) @ features.flatten(2)  # (B, most * K, h*w)
    masks = masks.view(*padded.shape[:3], *features.shape[2:])
    return torch.cat([own[:count] for own, count in zip(masks, counts, strict=True)])


def _uncertain_points(predictions: SampledMasks, masks: Tensor) -> Tensor:
    """Chooses the points where the logits of masks are nearest to 0, and others, (T, K, P, 2).

    Uncertainty is that of the interpolated logit (PointRend, Kirillov et al., CVPR 2020). All
    groups choose from the same points of a target, so that K groups train as K models would.

    Args:
        masks: (T, K, h, w).
    """
    num_targets, num_groups = masks.shape[:2]
    number, generator = predictions.num_candidates, predictions.generator
    candidates = draw_points((num_targets, number), predictions, generator)
    certainty = sample_maps(masks, candidates).abs_()  # (T, K, candidates)
    best = certainty.topk(predictions.num_uncertain, largest=False, sorted=False).indices
    index = best.flatten(1)[..., None].expand(-1, -1, 2)
    chosen = candidates.gather(1, index).view(*best.shape, 2)
    missing = predictions.points.shape[2] - predictions.num_uncertain
    others = draw_points((num_targets, missing), predictions, generator)
    return torch.cat([chosen, others[:, None].expand(-1, num_groups, -1, -1)], 2)
