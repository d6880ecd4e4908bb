"""DINO (Zhang et al., ICLR 2023, arXiv 2203.03605).

DAB-Deformable-DETR with mixed query selection (boxes from the first stage, learned content),
contrastive denoising, look forward twice, a norm ahead of heads that all decoder layers share, and
query positions that the content does not scale.
"""

from torch import nn

from ..modeling.box_predictor import build_box_predictor
from ..modeling.decoder import Decoder
from ..modeling.deformable_encoder import build_deformable_encoder
from ..modeling.denoising import ContrastiveDenoising
from ..modeling.head import DETRHead, build_groups
from ..modeling.neck import build_neck
from ..modeling.reference_noise import BorderNoise, build_denoising
from ..modeling.two_stage import LearnedContent, ProposalHeads, TwoStageQueries
from ..registry import VARIANT_REGISTRY
from .dab_deformable_detr import EPS, BoxQueryPosition
from .deformable_detr import build_deformable_layer


@VARIANT_REGISTRY.register()
def dino(cfg, backbone_shape) -> DETRHead:
    """Builds DINO from MODEL.DETR.*."""
    detr, groups = cfg.MODEL.DETR, build_groups(cfg)
    encoder = build_deformable_encoder(cfg)
    decoder = Decoder(
        lambda _: build_deformable_layer(cfg),
        detr.DEC_LAYERS,
        BoxQueryPosition(detr.HIDDEN_DIM, scaled=False),
        nn.LayerNorm(detr.HIDDEN_DIM),
        refine=True,
        look_forward_twice=True,
        recompute=detr.RECOMPUTE,
    )
    encoder.reset_parameters()
    decoder.reset_parameters()
    denoising = build_denoising(cfg, ContrastiveDenoising, BorderNoise, EPS)
    neck = build_neck(cfg, backbone_shape)
    heads = ProposalHeads(groups, detr.HIDDEN_DIM, detr.NUM_CLASSES)
    queries = TwoStageQueries(heads, LearnedContent(groups, detr.HIDDEN_DIM))
    predictor = build_box_predictor(cfg, shared=True, eps=EPS)
    return DETRHead(
        neck=neck,
        encoder=encoder,
        queries=queries,
        decoder=decoder,
        denoising=denoising,
        predictor=predictor,
    )
