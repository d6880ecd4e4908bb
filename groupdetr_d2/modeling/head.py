"""The parts of a DETR between the backbone and the predictions, and the registry of variants."""

from collections.abc import Mapping
from dataclasses import replace

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..errors import UserError
from ..groups import QueryGroups
from ..layers.ms_deform_attn import MSDeformAttn
from ..structures import Memory, Predictions, Targets
from .box_predictor import BoxPredictor

VARIANT_REGISTRY = Registry("DETR variant")
VARIANT_REGISTRY.__doc__ = """
DETR variants, by the name that MODEL.DETR.VARIANT gives. A registered function is called as
``build(cfg, backbone_shape)`` and returns a :class:`DETRHead`.
"""


class DETRHead(nn.Module):
    """Neck, encoder, queries, denoising, decoder and predictor, which a variant chooses."""

    def __init__(
        self,
        *,
        neck: nn.Module,
        encoder: nn.Module,
        queries: nn.Module,
        decoder: nn.Module,
        predictor: BoxPredictor,
        denoising: nn.Module | None = None,
    ):
        super().__init__()
        self.neck = neck
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.predictor = predictor
        self.denoising = denoising

    def encode(self, features: Mapping[str, Tensor], padding_mask: Tensor | None) -> Memory:
        """What the decoder will look at; it knows nothing of queries or groups."""
        return self.encoder(self.neck(features, padding_mask))

    def decode(
        self, memory: Memory, groups: QueryGroups, targets: Targets | None = None
    ) -> Predictions:
        """What the queries of `groups` find in the memory; denoising needs the targets."""
        queries, slots = self.queries(memory, groups), None
        proposals = queries.proposals
        if self.denoising is not None:
            queries, groups, slots = self.denoising(queries, groups, targets)
        hidden_states, references = self.decoder(
            queries, memory, groups, self.predictor.box_heads
        )  # (L, B, Q, C), L times (B, Q, D)
        predictions = self.predictor(hidden_states, references)
        if slots is not None:
            predictions = slots.separate(predictions, groups)
        return replace(predictions, proposals=proposals)

    def forward(
        self,
        features: Mapping[str, Tensor],
        padding_mask: Tensor | None,
        groups: QueryGroups,
        targets: Targets | None = None,
    ) -> Predictions:
        """
        Args:
            features: the backbone's, (B, channels, H, W) by name.
            padding_mask: (B, height, width) bool of the image batch, True on padding, or None.
            targets: in training.
        """
        return self.decode(self.encode(features, padding_mask), groups, targets)


def build_detr_head(cfg, backbone_shape: Mapping[str, ShapeSpec]) -> DETRHead:
    """The head that MODEL.DETR.VARIANT names."""
    if cfg.MODEL.DETR.VARIANT not in VARIANT_REGISTRY:
        known = ", ".join(name for name, _ in VARIANT_REGISTRY)
        raise UserError(
            f"MODEL.DETR.VARIANT is {cfg.MODEL.DETR.VARIANT!r}; the known variants are: {known}"
        )
    return VARIANT_REGISTRY.get(cfg.MODEL.DETR.VARIANT)(cfg, backbone_shape)


def build_groups(cfg) -> QueryGroups:
    """The groups of training, from MODEL.DETR.*.

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


def init_transformer(*modules: nn.Module) -> None:
    """The official codes' initialisation: Xavier for matrices, zero bias after attention."""
    for module in modules:
        for name, parameter in module.named_parameters():
            if name == "level_embedding":
                continue  # N(0, 1), like all embeddings
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(("out_proj.bias", "in_proj.bias")):
                nn.init.zeros_(parameter)
        for part in module.modules():
            if isinstance(part, MSDeformAttn):
                part.reset_parameters()
