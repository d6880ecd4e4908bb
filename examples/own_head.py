"""A variant of your own, with plain attentions: python examples/own_head.py [KEY VALUE ...]"""

import sys

from torch import nn

from groupdetr_d2 import Trainer, model_zoo
from groupdetr_d2.layers.attention import MultiheadAttention
from groupdetr_d2.modeling import box_predictor, cross_attention, decoder, encoder, head, neck
from groupdetr_d2.modeling.queries import FixedQueryPosition, PositionQueries
from groupdetr_d2.registry import VARIANT_REGISTRY


@VARIANT_REGISTRY.register()
def own_detr(cfg, backbone_shape):  # groups, matching, losses and the loop of layers are there
    dim, heads, layers = (cfg.MODEL.DETR[key] for key in ("HIDDEN_DIM", "NHEADS", "DEC_LAYERS"))

    def make_layer(i):
        attentions = MultiheadAttention(dim, heads), cross_attention.CrossAttention(dim, heads)
        return decoder.DecoderLayer(*attentions, make_ffn(), d_model=dim, dropout=0.0)

    def make_ffn():
        return encoder.build_ffn(dim, 4 * dim, dropout=0.0)

    queries = PositionQueries(head.build_groups(cfg), dim)
    position, norm = FixedQueryPosition(), nn.LayerNorm(dim)
    return head.DETRHead(
        neck=neck.build_neck(cfg, backbone_shape),
        encoder=encoder.build_transformer_encoder(cfg, make_ffn),
        queries=queries,
        decoder=decoder.Decoder(make_layer, layers, position, norm, refine=False),
        predictor=box_predictor.build_box_predictor(cfg, shared=True, eps=1e-5),
    )


cfg = model_zoo.get_config("quick_start/group_conditional_detr_shapes.yaml")
cfg.merge_from_list(["MODEL.DETR.VARIANT", "own_detr", *sys.argv[1:]])
Trainer(cfg).train()
