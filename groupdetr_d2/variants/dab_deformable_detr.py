"""DAB-Deformable-DETR (Liu et al., ICLR 2022, arXiv 2201.12329), and by its switches DINO.

Deformable DETR whose queries are anchor boxes. DINO (Zhang et al., ICLR 2023, arXiv 2203.03605) is
this model with mixed query selection, contrastive denoising, look forward twice, shared heads and a
norm ahead of them: configs/DINO. DN-DAB-Deformable-DETR is it with DN-DETR's denoising.
"""

from torch import nn

from ..errors import UserError
from ..layers.mlp import MLP
from ..layers.position_encoding import sine_embedding
from ..modeling.box_predictor import build_box_predictor
from ..modeling.decoder import Decoder
from ..modeling.deformable_encoder import build_deformable_encoder
from ..modeling.denoising import ContentDenoising, ContrastiveDenoising, build_denoising
from ..modeling.head import VARIANT_REGISTRY, DETRHead, build_groups, init_transformer
from ..modeling.neck import build_neck
from ..modeling.queries import LearnedAnchorQueries
from ..modeling.two_stage import LearnedContent, ProposalHeads, SelectedContent, TwoStageQueries
from ..structures import Memory, Queries, QueryPosition
from .deformable_detr import SIZE_BIAS, build_deformable_layer

EPS = 1e-3  # of the inverse sigmoid; Deformable DETR has 1e-5


class BoxQueryPosition(nn.Module):
    """Positions from boxes, which are measured on the padded map of the finest level.

    Args:
        scaled: whether the content scales the positions, from the second layer on.
    """

    def __init__(self, d_model: int, scaled: bool):
        super().__init__()
        self.num_feats = d_model // 2
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)
        self.query_scale = MLP(d_model, d_model, d_model, 2) if scaled else None

    def forward(self, layer: int, queries: Queries, memory: Memory) -> QueryPosition:
        """(B, Q, C)."""
        boxes = queries.reference * memory.valid_ratios[:, :1].repeat(1, 1, 2)
        pos = self.ref_point_head(sine_embedding(boxes, self.num_feats))  # y, x, w, h
        if self.query_scale is not None and layer > 0:
            pos = pos * self.query_scale(queries.content)
        return QueryPosition(pos)


def build_queries(cfg, indicator: int) -> nn.Module:
    """Learned boxes, or with MODEL.DETR.TWO_STAGE "pure" or "mixed" the first stage's."""
    detr, groups = cfg.MODEL.DETR, build_groups(cfg)
    if not detr.TWO_STAGE:
        return LearnedAnchorQueries(groups, detr.HIDDEN_DIM, indicator)
    if detr.TWO_STAGE not in ("pure", "mixed"):
        raise UserError(
            f"MODEL.DETR.TWO_STAGE is {detr.TWO_STAGE!r}; for dab_deformable_detr it can be empty, "
            "pure (content from the encoder) or mixed (learned content, DINO's)"
        )
    if indicator:
        raise UserError(
            "a two-stage model has contrastive denoising: MODEL.DETR.DENOISING.CONTRASTIVE True"
        )
    heads = ProposalHeads(groups, detr.HIDDEN_DIM, detr.NUM_CLASSES)
    is_mixed = detr.TWO_STAGE == "mixed"
    content = LearnedContent(groups, detr.HIDDEN_DIM) if is_mixed else SelectedContent()
    return TwoStageQueries(heads, content)


@VARIANT_REGISTRY.register()
def dab_deformable_detr(cfg, backbone_shape) -> DETRHead:
    """DAB-Deformable-DETR from MODEL.DETR.*."""
    detr = cfg.MODEL.DETR
    encoder = build_deformable_encoder(cfg)
    decoder = Decoder(
        lambda _: build_deformable_layer(cfg),
        detr.DEC_LAYERS,
        BoxQueryPosition(detr.HIDDEN_DIM, scaled=detr.QUERY_SCALE),
        nn.LayerNorm(detr.HIDDEN_DIM) if detr.DECODER_NORM else nn.Identity(),
        refine=True,
        look_forward_twice=detr.LOOK_FORWARD_TWICE,
        eps=EPS,
        checkpointing=detr.CHECKPOINTING,
    )
    init_transformer(encoder, decoder)
    kind = ContrastiveDenoising if detr.DENOISING.CONTRASTIVE else ContentDenoising
    denoising = build_denoising(cfg, kind, EPS)
    return DETRHead(
        neck=build_neck(cfg, backbone_shape),
        encoder=encoder,
        queries=build_queries(cfg, kind.indicator if denoising else 0),
        decoder=decoder,
        denoising=denoising,
        predictor=build_box_predictor(
            cfg, shared=detr.SHARED_HEADS, eps=EPS, size_bias=0.0 if detr.TWO_STAGE else SIZE_BIAS
        ),
    )
