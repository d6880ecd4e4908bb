"""Deformable DETR (Zhu et al., ICLR 2021, arXiv 2010.04159), with box refinement or two stages.

Encoder and decoder attend to a few learned points of every feature level instead of all positions.
"""

from torch import Tensor, nn

from ..errors import UserError
from ..layers.attention import MultiheadAttention
from ..layers.ms_deform_attn import MSDeformAttn
from ..modeling.box_predictor import build_box_predictor
from ..modeling.decoder import Decoder, DecoderLayer
from ..modeling.deformable_encoder import build_deformable_encoder
from ..modeling.encoder import build_ffn
from ..modeling.head import DETRHead, build_groups
from ..modeling.neck import build_neck
from ..modeling.queries import FixedQueryPosition, LearnedQueries
from ..modeling.reference_points import on_padded_maps
from ..modeling.two_stage import BoxContent, ProposalHeads, TwoStageQueries
from ..registry import VARIANT_REGISTRY
from ..structures import Memory, QueryPosition

EPS = 1e-5  # of the inverse sigmoid
SIZE_BIAS = -2.0  # boxes start small, unless the first stage has set their size


class DeformableCrossAttention(nn.Module):
    """Multi-scale deformable attention around each query's reference point or box."""

    def __init__(self, d_model: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.attention = MSDeformAttn(d_model, num_heads, num_levels, num_points)

    def forward(
        self, content: Tensor, position: QueryPosition, reference: Tensor, memory: Memory
    ) -> Tensor:
        """Returns the update (B, Q, C)."""
        return self.attention(
            content + position.pos,
            on_padded_maps(reference, memory),
            memory.features,
            memory.spatial_shapes,
            memory.padding_mask,
        )

    def sampling_points(
        self, content: Tensor, position: QueryPosition, reference: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Computes the points sampled, see :meth:`MSDeformAttn.sampling_points`."""
        query, reference = content + position.pos, on_padded_maps(reference, memory)
        return self.attention.sampling_points(query, reference, memory.spatial_shapes)


def build_deformable_layer(cfg) -> DecoderLayer:
    """Builds a decoder layer from MODEL.DETR.*."""
    detr = cfg.MODEL.DETR
    num_levels = len(detr.IN_FEATURES) + detr.EXTRA_LEVELS
    return DecoderLayer(
        MultiheadAttention(detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT),
        DeformableCrossAttention(detr.HIDDEN_DIM, detr.NHEADS, num_levels, detr.NUM_POINTS),
        build_ffn(detr.HIDDEN_DIM, detr.DIM_FEEDFORWARD, detr.DROPOUT),
        d_model=detr.HIDDEN_DIM,
        dropout=detr.DROPOUT,
    )


def build_queries(cfg) -> nn.Module:
    """Builds learned queries, or with MODEL.DETR.TWO_STAGE "objectness" the first stage's."""
    detr, groups = cfg.MODEL.DETR, build_groups(cfg)
    if not detr.TWO_STAGE:
        return LearnedQueries(groups, detr.HIDDEN_DIM)
    if not detr.BOX_REFINE:
        raise UserError(
            f"MODEL.DETR.TWO_STAGE {detr.TWO_STAGE!r} of deformable_detr needs "
            "MODEL.DETR.BOX_REFINE True"
        )
    heads = ProposalHeads(groups, detr.HIDDEN_DIM, detr.NUM_CLASSES)
    return TwoStageQueries(heads, BoxContent(detr.HIDDEN_DIM), class_agnostic=True)


@VARIANT_REGISTRY.register()
def deformable_detr(cfg, backbone_shape) -> DETRHead:
    """Builds Deformable DETR from MODEL.DETR.*; BOX_REFINE and TWO_STAGE choose its forms."""
    detr = cfg.MODEL.DETR
    encoder = build_deformable_encoder(cfg)
    decoder = Decoder(
        lambda _: build_deformable_layer(cfg),
        detr.DEC_LAYERS,
        FixedQueryPosition(),
        nn.Identity(),
        refine=detr.BOX_REFINE,
        recompute=detr.RECOMPUTE,
    )
    encoder.reset_parameters()
    decoder.reset_parameters()
    size_bias = 0.0 if detr.TWO_STAGE else SIZE_BIAS
    return DETRHead(
        neck=build_neck(cfg, backbone_shape),
        encoder=encoder,
        queries=build_queries(cfg),
        decoder=decoder,
        predictor=build_box_predictor(
            cfg, shared=not detr.BOX_REFINE, eps=EPS, size_bias=size_bias
        ),
    )
