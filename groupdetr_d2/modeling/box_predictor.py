"""The class and box heads."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.mlp import MLP
from ..layers.position_encoding import at_least_float32, inverse_sigmoid
from ..losses.box2d import BoxPredictions
from ..structures import Memory

PRIOR_PROBABILITY = 0.01  # of any class at any query, at the start (RetinaNet's initialisation)


class BoxPredictor(nn.Module):
    """Heads that predict class logits, and boxes relative to each query's reference.

    Args:
        num_layers: decoder layers.
        shared: whether all layers share one pair of heads.
        eps: bound of the inverse sigmoid; it must match the checkpoint.
        size_bias: the first layer's start of width and height, before the sigmoid.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_classes: int,
        num_layers: int,
        shared: bool,
        eps: float,
        size_bias: float = 0.0,
    ):
        super().__init__()
        num_heads = 1 if shared else num_layers
        self.num_layers, self.num_classes, self.eps = num_layers, num_classes, eps
        self.class_heads = nn.ModuleList(nn.Linear(d_model, num_classes) for _ in range(num_heads))
        self.layer_box_heads = nn.ModuleList(MLP(d_model, d_model, 4, 3) for _ in range(num_heads))
        for class_head, box_head in zip(self.class_heads, self.layer_box_heads, strict=True):
            bias = class_head.get_parameter("bias")
            nn.init.constant_(bias, -math.log(1 / PRIOR_PROBABILITY - 1))
            nn.init.zeros_(box_head.layers[-1].weight)
            nn.init.zeros_(box_head.layers[-1].bias)
        nn.init.constant_(self.layer_box_heads[0].layers[-1].bias[2:], size_bias)

    def move(self, layer: int, content: Tensor, reference: Tensor) -> Tensor:
        """Moves the references (B, Q, D) of a decoder layer to its boxes (B, Q, 4)."""
        offset = self.layer_box_heads[layer % len(self.layer_box_heads)](content)
        return self._place(offset, self._start(reference))

    def forward(
        self, hidden_states: Tensor, references: Sequence[Tensor], memory: Memory
    ) -> BoxPredictions:
        """Predicts float32 logits and boxes from (L, B, Q, C) and L references (B, Q, D).

        The memory is not read.
        """
        starts = torch.stack([self._start(x) for x in references])  # (L, B, Q, 4)
        boxes = self._place(apply_heads(self.layer_box_heads, hidden_states), starts)
        return BoxPredictions(at_least_float32(apply_heads(self.class_heads, hidden_states)), boxes)

    def _start(self, reference: Tensor) -> Tensor:
        """Maps references (B, Q, 2 or 4) in [0, 1] to logits (B, Q, 4); a point has size 0.5."""
        start = inverse_sigmoid(reference, self.eps)
        return F.pad(start, (0, 4 - start.shape[-1]))

    @staticmethod
    def _place(offsets: Tensor, starts: Tensor) -> Tensor:
        return (at_least_float32(offsets) + starts).sigmoid()


def apply_heads(heads: nn.ModuleList, hidden_states: Tensor) -> Tensor:
    """Applies each head to its layer, a shared one to all layers in one call."""
    if len(heads) == 1:
        return heads[0](hidden_states)
    return torch.stack([head(x) for head, x in zip(heads, hidden_states, strict=True)])


def build_box_predictor(cfg, *, shared: bool, eps: float, size_bias: float = 0.0) -> BoxPredictor:
    """Builds the heads from MODEL.DETR.HIDDEN_DIM, NUM_CLASSES and DEC_LAYERS."""
    detr = cfg.MODEL.DETR
    return BoxPredictor(
        d_model=detr.HIDDEN_DIM,
        num_classes=detr.NUM_CLASSES,
        num_layers=detr.DEC_LAYERS,
        shared=shared,
        eps=eps,
        size_bias=size_bias,
    )
