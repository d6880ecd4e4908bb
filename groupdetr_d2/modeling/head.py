"""The parts of a DETR between the backbone and the predictions."""

from collections.abc import Mapping
from dataclasses import replace

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..errors import UserError
from ..groups import QueryGroups
from ..registry import VARIANT_REGISTRY
from ..structures import Memory, Predictions, Queries, Targets, Views


class DETRHead(nn.Module):
    """The parts of a DETR that a variant chooses.

    Args:
        neck: ``(features, context) -> Memory`` of the projected feature maps.
        encoder: ``(memory) -> Memory``.
        queries: ``(memory, groups) -> Queries``.
        decoder: ``(queries, memory, groups, move) -> (hidden states, references)``.
        predictor: ``(hidden states, references, memory) -> Predictions``; its ``move`` refines
            references.
        denoising: see :class:`groupdetr_d2.modeling.denoising.Denoising`; None for none.
    """

    def __init__(
        self,
        *,
        neck: nn.Module,
        encoder: nn.Module,
        queries: nn.Module,
        decoder: nn.Module,
        predictor: nn.Module,
        denoising: nn.Module | None = None,
    ):
        super().__init__()
        self.neck = neck
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.predictor = predictor
        self.denoising = denoising

    def encode(self, features: Mapping[str, Tensor], context: Tensor | Views | None) -> Memory:
        """Computes the memory that decoders attend to, which is the same for all groups.

        Args:
            features: the backbone's outputs by name, (B, channels, H, W) each.
            context: what the neck reads besides them: the padding mask (B, height, width) bool of
                the image batch, True on padding, or None; in space, the views.
        """
        return self.encoder(self.neck(features, context))

    def decode(
        self,
        memory: Memory,
        groups: QueryGroups,
        targets: Targets | None = None,
        *,
        queries: Queries | None = None,
    ) -> Predictions:
        """Computes what the queries of `groups` predict.

        Args:
            targets: given in training alone.
            queries: what the decoder starts from; what ``self.queries`` makes of the memory if not
                given.
        """
        queries, layout = self.queries(memory, groups) if queries is None else queries, None
        proposals = queries.proposals
        if self.denoising is not None:
            queries, groups, layout = self.denoising(queries, groups, targets)
        hidden_states, references = self.decoder(
            queries, memory, groups, self.predictor.move
        )  # (L, B, Q, C), L times (B, Q, D)
        predictions = self.predictor(hidden_states, references, memory)
        if layout is not None:
            predictions = layout.separate(predictions, groups)
        return replace(predictions, proposals=proposals)


def build_detr_head(cfg, backbone_shape: Mapping[str, ShapeSpec]) -> DETRHead:
    """Builds the head that MODEL.DETR.VARIANT names."""
    return VARIANT_REGISTRY.get(cfg.MODEL.DETR.VARIANT)(cfg, backbone_shape)


def build_groups(cfg) -> QueryGroups:
    """Builds the groups of training from MODEL.DETR.*.

    Raises:
        UserError: joint self-attention together with denoising, whose mask is one group's.
    """
    detr = cfg.MODEL.DETR
    if detr.JOINT_SELF_ATTENTION and detr.DENOISING.NUM_QUERIES:
        raise UserError(
            "MODEL.DETR.JOINT_SELF_ATTENTION needs MODEL.DETR.DENOISING.NUM_QUERIES 0: denoising "
            "queries belong to one group"
        )
    return QueryGroups(
        detr.NUM_OBJECT_QUERIES,
        detr.NUM_GROUPS,
        joint_self_attention=detr.JOINT_SELF_ATTENTION,
    )
