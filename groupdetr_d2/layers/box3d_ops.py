"""Boxes in space, and the ten numbers that a network regresses for one.

A box is ``x y z w l h yaw vx vy``: centre, width, length and height in metres, yaw in radians from
the x axis, counter-clockwise, velocity in metres per second. Its code is ``x y log(w) log(l) z
log(h) sin(yaw) cos(yaw) vx vy``, in the order of PETR's heads.
"""

import torch
from torch import Tensor

BOX_SIZE, CODE_SIZE = 9, 10
CENTER = (0, 1, 4)  # the places of x, y and z in a code


def encode_boxes(boxes: Tensor) -> Tensor:
    """Encodes boxes (..., 9) as codes (..., 10)."""
    x, y, z, w, length, h, yaw, vx, vy = boxes.unbind(-1)
    parts = (x, y, w.log(), length.log(), z, h.log(), yaw.sin(), yaw.cos(), vx, vy)
    return torch.stack(parts, -1)


def decode_boxes(codes: Tensor) -> Tensor:
    """Decodes codes (..., 10) to boxes (..., 9)."""
    x, y, log_w, log_l, z, log_h, sin, cos, vx, vy = codes.unbind(-1)
    parts = (x, y, z, log_w.exp(), log_l.exp(), log_h.exp(), torch.atan2(sin, cos), vx, vy)
    return torch.stack(parts, -1)
