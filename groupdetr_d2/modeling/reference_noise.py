"""Noise on the boxes that denoising queries start from (DN-DETR, DINO)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layers.box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from ..layers.position_encoding import inverse_sigmoid
from ..losses.box2d import BoxTargets
from .denoising import Denoising


@dataclass
class BoxNoise(ABC):
    """Moves the boxes of targets.

    Args:
        scale: how far boxes move; see the subclasses.
        eps: bound of the inverse sigmoid that noised boxes pass through.
    """

    scale: float
    eps: float
    size: int = field(default=4, init=False)  # D, the numbers of a reference

    def __call__(self, targets: BoxTargets, amount: Tensor) -> Tensor:
        """Returns references (K, R, T, 4) for amounts (K, R, T, 4) in [-1, 1) of the noise."""
        return inverse_sigmoid(self.move(targets.boxes, amount), self.eps).sigmoid()

    @abstractmethod
    def move(self, boxes: Tensor, amount: Tensor) -> Tensor:
        """Moves boxes (T, 4) by amounts (K, R, T, 4) of the largest noise, in [-1, 1)."""


class CenterAndSizeNoise(BoxNoise):
    """DN-DETR's noise: a centre moves by up to `scale` times half the size, a size by `scale`."""

    def move(self, boxes: Tensor, amount: Tensor) -> Tensor:
        """Moves centres and sizes, see :meth:`BoxNoise.move`."""
        size = boxes[:, 2:]
        reach = torch.cat([size / 2, size], -1) * self.scale  # (T, 4)
        return (boxes + amount * reach).clamp(0, 1)


class BorderNoise(BoxNoise):
    """DINO's noise: borders move by up to `scale` times half the size, those of negatives by more.

    Repetitions come in pairs of a positive and a negative one. Borders may cross.
    """

    def move(self, boxes: Tensor, amount: Tensor) -> Tensor:
        """Moves borders, see :meth:`BoxNoise.move`."""
        positive, negative = amount.unflatten(1, (-1, 2)).unbind(2)  # (K, R/2, T, 4) each
        negative = negative + torch.where(negative < 0, -1.0, 1.0)
        amount = torch.stack([positive, negative], 2).flatten(1, 2)
        reach = (boxes[:, 2:] / 2).repeat(1, 2) * self.scale  # (T, 4)
        return box_xyxy_to_cxcywh((box_cxcywh_to_xyxy(boxes) + amount * reach).clamp(0, 1))


def build_denoising(
    cfg, kind: type[Denoising], noise: type[BoxNoise], eps: float
) -> Denoising | None:
    """Builds denoising from MODEL.DETR.DENOISING; None if NUM_QUERIES is 0."""
    denoising = cfg.MODEL.DETR.DENOISING
    if not denoising.NUM_QUERIES:
        return None
    return kind(
        num_classes=cfg.MODEL.DETR.NUM_CLASSES,
        d_model=cfg.MODEL.DETR.HIDDEN_DIM,
        num_queries=denoising.NUM_QUERIES,
        label_noise=denoising.LABEL_NOISE,
        reference_noise=noise(denoising.BOX_NOISE, eps),
    )
