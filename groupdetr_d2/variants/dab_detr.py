"""DAB-DETR (Liu et al., ICLR 2022, arXiv 2201.12329); with denoising, DN-DETR (CVPR 2022).

A query is an anchor box. Every layer turns it into positions, looks at the image with a spatial
query whose width and height are modulated (the paper's Eq. 6), and moves the box.
"""

from torch import Tensor, nn

from ..layers.mlp import MLP
from ..layers.position_encoding import sine_embedding
from ..modeling.box_predictor import build_box_predictor
from ..modeling.decoder import Decoder
from ..modeling.denoising import LabelDenoising
from ..modeling.encoder import build_ffn, build_transformer_encoder
from ..modeling.head import DETRHead, build_groups
from ..modeling.neck import build_neck
from ..modeling.queries import AnchorQueries
from ..modeling.reference_noise import CenterAndSizeNoise, build_denoising
from ..registry import VARIANT_REGISTRY
from ..structures import Memory, Queries, QueryPosition
from .conditional_detr import build_conditional_layer

EPS = 1e-3  # of the inverse sigmoid; Conditional DETR has 1e-5


class AnchorQueryPosition(nn.Module):
    """Query positions from anchor boxes; width and height modulate the spatial query."""

    def __init__(self, d_model: int):
        super().__init__()
        self.num_feats = d_model // 2
        self.query_scale = MLP(d_model, d_model, d_model, 2)
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)
        self.ref_anchor_head = MLP(d_model, d_model, 2, 2)

    def forward(self, layer: int, queries: Queries, memory: Memory) -> QueryPosition:
        """Modulates at every layer, and scales by the content from the second layer on."""
        content, reference = queries.content, queries.reference
        box_sine = sine_embedding(reference, self.num_feats)  # (B, Q, 2C): y, x, w, h
        sine = box_sine[..., : 2 * self.num_feats]
        if layer > 0:
            sine = sine * self.query_scale(content)
        return QueryPosition(self.ref_point_head(box_sine), sine * self._modulation(queries))

    def _modulation(self, queries: Queries) -> Tensor:
        """Computes (B, Q, C): h / h_anchor for the y half, w / w_anchor for the x half."""
        width_height = self.ref_anchor_head(queries.content).sigmoid()
        ratio = width_height / queries.reference[..., 2:]  # (B, Q, 2), w before h
        return ratio.flip(-1).repeat_interleave(self.num_feats, dim=-1)


@VARIANT_REGISTRY.register()
def dab_detr(cfg, backbone_shape) -> DETRHead:
    """Builds DAB-DETR from MODEL.DETR.*."""
    detr = cfg.MODEL.DETR
    d_model, dropout = detr.HIDDEN_DIM, detr.DROPOUT
    sizes = {"d_model": d_model, "num_heads": detr.NHEADS, "dropout": dropout}

    def make_ffn() -> nn.Module:
        return build_ffn(d_model, detr.DIM_FEEDFORWARD, dropout, "prelu")

    encoder = build_transformer_encoder(cfg, make_ffn, MLP(d_model, d_model, d_model, 2))
    decoder = Decoder(
        lambda i: build_conditional_layer(i, make_ffn(), **sizes),
        detr.DEC_LAYERS,
        AnchorQueryPosition(d_model),
        nn.LayerNorm(d_model),
        refine=True,
        look_forward_twice=True,
        recompute=detr.RECOMPUTE,
    )
    encoder.reset_parameters()
    decoder.reset_parameters()
    return DETRHead(
        neck=build_neck(cfg, backbone_shape),
        encoder=encoder,
        queries=AnchorQueries(build_groups(cfg), d_model),
        decoder=decoder,
        denoising=build_denoising(cfg, LabelDenoising, CenterAndSizeNoise, EPS),
        predictor=build_box_predictor(cfg, shared=True, eps=EPS),
    )
