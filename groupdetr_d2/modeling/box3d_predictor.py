"""The class and box heads of boxes in space (PETR, Liu et al., ECCV 2022)."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..layers.box3d_ops import CENTER, CODE_SIZE
from ..layers.mlp import MLP
from ..layers.position_encoding import at_least_float32, inverse_sigmoid
from ..losses.box3d import Box3DPredictions
from .box_predictor import PRIOR_PROBABILITY, apply_heads

PARTS = (2, 1, 3, 2, 2)  # outputs of PETRv2's parallel heads, in the order of a code


class TimedMemory(Protocol):
    """A memory that knows the time between two frames."""

    interval: Tensor | None  # (B,) seconds; None if there is one frame


class ClassHead(nn.Sequential):
    """Two linear layers with LayerNorm and ReLU, and one to the logits of the classes."""

    def __init__(self, d_model: int, num_classes: int):
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(d_model, d_model), nn.LayerNorm(d_model), nn.ReLU(inplace=True)]
        last = nn.Linear(d_model, num_classes)
        nn.init.constant_(last.bias, -math.log(1 / PRIOR_PROBABILITY - 1))
        super().__init__(*layers, last)


class ParallelBoxHead(nn.Module):
    """PETRv2's box head: a shared trunk, and five heads whose outputs are parts of the code."""

    def __init__(self, d_model: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(d_model, d_model), nn.ReLU(inplace=True)]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(MLP(d_model, d_model, size, 2) for size in PARTS)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to codes (..., 10)."""
        x = self.trunk(x)
        return torch.cat([head(x) for head in self.heads], -1)


class Box3DPredictor(nn.Module):
    """Heads that predict class logits, and boxes whose centres lie around each query's point.

    Args:
        make_box_head: builds a module from (..., C) to codes (..., 10).
        shared: whether all layers share one pair of heads.
        box_range: x, y, z of the lowest and of the highest corner in metres; points and centres
            are relative to it.
        kept_range: that of the boxes that count as detections.
    """

    low: Tensor
    extent: Tensor
    kept_range: Tensor

    def __init__(
        self,
        make_box_head: Callable[[], nn.Module],
        *,
        d_model: int,
        num_classes: int,
        num_layers: int,
        shared: bool,
        box_range: Sequence[float],
        kept_range: Sequence[float],
    ):
        super().__init__()
        number = 1 if shared else num_layers
        self.class_heads = nn.ModuleList(ClassHead(d_model, num_classes) for _ in range(number))
        self.box_heads = nn.ModuleList(make_box_head() for _ in range(number))
        low, high = torch.tensor(box_range, dtype=torch.float32).view(2, 3)
        kept = torch.tensor(kept_range, dtype=torch.float32).view(2, 3)
        self.register_buffer("kept_range", kept, False)
        self.register_buffer("low", low, False)
        self.register_buffer("extent", high - low, False)

    def move(self, layer: int, content: Tensor, reference: Tensor) -> Tensor:
        """Returns the points (B, Q, 3) as they are: layers do not move them."""
        return reference

    def forward(
        self, hidden_states: Tensor, references: Sequence[Tensor], memory: TimedMemory
    ) -> Box3DPredictions:
        """Predicts float32 logits and codes from (L, B, Q, C) and L points (B, Q, 3).

        With two frames, heads predict what an object moves between them.
        """
        codes = at_least_float32(apply_heads(self.box_heads, hidden_states))  # (L, B, Q, 10)
        starts = inverse_sigmoid(torch.stack(list(references)))  # (L, B, Q, 3)
        center = (codes[..., CENTER] + starts).sigmoid() * self.extent + self.low
        velocity = codes[..., CODE_SIZE - 2 :]
        if memory.interval is not None:
            velocity = velocity / memory.interval[:, None, None]
        x, y, z = center.split(1, -1)
        parts = [x, y, codes[..., 2:4], z, codes[..., 5:8], velocity]
        logits = at_least_float32(apply_heads(self.class_heads, hidden_states))
        return Box3DPredictions(logits, torch.cat(parts, -1))


def petr_box_head(d_model: int) -> MLP:
    """Builds PETR's box head: three linear layers."""
    return MLP(d_model, d_model, CODE_SIZE, 3)
