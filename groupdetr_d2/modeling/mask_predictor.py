"""The class and mask heads of Mask2Former (Cheng et al., CVPR 2022)."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from ..layers.mlp import MLP
from ..layers.position_encoding import at_least_float32
from ..losses.mask import MaskPredictions
from ..structures import PerImage


class MaskedMemory(Protocol):
    """A memory that has mask features, which masks are products with."""

    mask_features: Tensor  # (B, C, h, w)


class MaskPredictor(nn.Module):
    """Heads that predict class logits, and embeddings whose product with features are masks.

    A query's reference is its embedding: what it sees in the next layer lies inside its mask.

    Args:
        num_classes: H; there is one more logit, for "no object".
        stride: of the mask features in the image.
    """

    def __init__(self, *, d_model: int, num_classes: int, stride: int):
        super().__init__()
        self.num_classes, self.stride = num_classes, stride
        self.norm = nn.LayerNorm(d_model)
        self.class_heads = nn.ModuleList([nn.Linear(d_model, num_classes + 1)])
        self.mask_head = MLP(d_model, d_model, d_model, 3)

    def move(self, layer: int, content: Tensor, reference: Tensor) -> Tensor:
        """Computes the mask embeddings (B, Q, C) that the next layer starts from."""
        return self.mask_head(self.norm(content))

    def forward(
        self, hidden_states: Tensor, references: Sequence[Tensor], memory: MaskedMemory
    ) -> MaskPredictions:
        """Predicts float32 logits and embeddings from (L, B, Q, C); references are not read."""
        normed = self.norm(hidden_states)
        return MaskPredictions(
            logits=at_least_float32(self.class_heads[0](normed)),
            embeddings=at_least_float32(self.mask_head(normed)),
            features=PerImage(at_least_float32(memory.mask_features)),
            stride=self.stride,
        )
