"""DAB-Deformable-DETR (Liu et al., ICLR 2022, arXiv 2201.12329): Deformable DETR with anchor boxes.

With MODEL.DETR.DENOISING it is DN-DAB-Deformable-DETR (Li et al., CVPR 2022, arXiv 2203.01305).
"""

from torch import nn

from ..errors import UserError
from ..layers.mlp import MLP
from ..layers.position_encoding import sine_embedding
from ..modeling.box_predictor import build_box_predictor
from ..modeling.decoder import Decoder
from ..modeling.deformable_encoder import build_deformable_encoder
from ..modeling.denoising import ContentDenoising
from ..modeling.head import DETRHead, build_groups
from ..modeling.neck import build_neck
from ..modeling.queries import LearnedAnchorQueries
from ..modeling.reference_noise import CenterAndSizeNoise, build_denoising
from ..modeling.two_stage import ProposalHeads, SelectedContent, TwoStageQueries
from ..registry import VARIANT_REGISTRY
from ..structures import Memory, Queries, QueryPosition
from .deformable_detr import SIZE_BIAS, build_deformable_layer

EPS = 1e-3  # of the inverse sigmoid; Deformable DETR has 1e-5


class BoxQueryPosition(nn.Module):
    """Query positions from boxes, which are measured on the padded map of the finest level.

    Args:
        scaled: whether the content scales the positions, from the second layer on.
    """

    def __init__(self, d_model: int, scaled: bool):
        super().__init__()
        self.num_feats = d_model // 2
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)
        self.query_scale = MLP(d_model, d_model, d_model, 2) if scaled else None

    def forward(self, layer: int, queries: Queries, memory: Memory) -> QueryPosition:
        """Returns positions (B, Q, C)."""
        boxes = queries.reference * memory.valid_ratios[:, :1].repeat(1, 1, 2)
        pos = self.ref_point_head(sine_embedding(boxes, self.num_feats))  # y, x, w, h
        if self.query_scale is not None and layer > 0:
            pos = pos * self.query_scale(queries.content)
        return QueryPosition(pos)


def build_queries(cfg, indicator: int) -> nn.Module:
    """Builds learned boxes, or with MODEL.DETR.TWO_STAGE "pure" the first stage's.

    Raises:
        UserError: denoising is asked for in a two-stage model.
    """
    detr, groups = cfg.MODEL.DETR, build_groups(cfg)
    if not detr.TWO_STAGE:
        return LearnedAnchorQueries(groups, detr.HIDDEN_DIM, indicator)
    if indicator:
        raise UserError(
            "dab_deformable_detr has no denoising with MODEL.DETR.TWO_STAGE: set "
            "MODEL.DETR.DENOISING.NUM_QUERIES 0, or take the variant dino"
        )
    heads = ProposalHeads(groups, detr.HIDDEN_DIM, detr.NUM_CLASSES)
    return TwoStageQueries(heads, SelectedContent())


@VARIANT_REGISTRY.register()
def dab_deformable_detr(cfg, backbone_shape) -> DETRHead:
    """Builds DAB-Deformable-DETR from MODEL.DETR.*."""
    detr = cfg.MODEL.DETR
    encoder = build_deformable_encoder(cfg)
    decoder = Decoder(
        lambda _: build_deformable_layer(cfg),
        detr.DEC_LAYERS,
        BoxQueryPosition(detr.HIDDEN_DIM, scaled=True),
        nn.Identity(),
        refine=True,
        recompute=detr.RECOMPUTE,
    )
    encoder.reset_parameters()
    decoder.reset_parameters()
    denoising = build_denoising(cfg, ContentDenoising, CenterAndSizeNoise, EPS)
    size_bias = 0.0 if detr.TWO_STAGE else SIZE_BIAS
    return DETRHead(
        neck=build_neck(cfg, backbone_shape),
        encoder=encoder,
        queries=build_queries(cfg, ContentDenoising.indicator if denoising else 0),
        decoder=decoder,
        denoising=denoising,
        predictor=build_box_predictor(cfg, shared=False, eps=EPS, size_bias=size_bias),
    )
