"""Boxes: formats and generalized IoU (Rezatofighi et al., CVPR 2019)."""

import torch
from torch import Tensor

TINY_AREA = 1e-12  # keeps two boxes that shrink to one point from giving 0 / 0


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Converts (..., 4) centre and size to corners."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def box_xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Converts (..., 4) corners to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def mirrored(boxes: Tensor) -> Tensor:
    """Mirrors boxes cxcywh (..., 4), or points (..., 2), in [0, 1] of an image, left to right."""
    return torch.cat([1 - boxes[..., :1], boxes[..., 1:]], dim=-1)


def generalized_box_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Computes generalized IoU of boxes that broadcast: (N, 1, 4) and (M, 4) give (N, M)."""
    a_low, a_high = a_xyxy[..., :2], a_xyxy[..., 2:]
    b_low, b_high = b_xyxy[..., :2], b_xyxy[..., 2:]
    overlap = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(-1)
    union = (a_high - a_low).prod(-1) + (b_high - b_low).prod(-1) - overlap
    union, hull = union.clamp(min=TINY_AREA), hull.clamp(min=TINY_AREA)
    return overlap / union - (hull - union) / hull
