"""Hugging Face `transformers` checkpoints of Mask2Former with a ResNet.

Their names are turned into the official ones first. Their `decoder_layers` counts the predictions,
one more than there are layers.
"""

from . import mask2former
from .hugging_face_names import RenamingConverter
from .official import Rules

LAYER = r"^model\.transformer_module\.decoder\.layers\.(\d+)\."
OFFICIAL_LAYER = r"sem_seg_head.predictor.transformer_{}_layers.\1."
RULES: Rules = [
    (
        r"^model\.pixel_level_module\.decoder\.(encoder\.|level_embed$)",
        r"sem_seg_head.pixel_decoder.transformer.\1",
    ),
    (r"^model\.pixel_level_module\.decoder\.", "sem_seg_head.pixel_decoder."),
    (r"^(sem_seg_head\.pixel_decoder\.)input_projections\.", r"\1input_proj."),
    (r"^(sem_seg_head\.pixel_decoder\.)mask_projection\.", r"\1mask_features."),
    (r"^(sem_seg_head\.pixel_decoder\.(?:adapter|layer)_1\.)0\.", r"\1"),
    (r"^(sem_seg_head\.pixel_decoder\.(?:adapter|layer)_1\.)1\.", r"\1norm."),
    (r"^(sem_seg_head\.pixel_decoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(sem_seg_head\.pixel_decoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (rf"{LAYER}self_attn_layer_norm\.", rf"{OFFICIAL_LAYER.format('self_attention')}norm."),
    (rf"{LAYER}self_attn\.", rf"{OFFICIAL_LAYER.format('self_attention')}self_attn."),
    (rf"{LAYER}cross_attn_layer_norm\.", rf"{OFFICIAL_LAYER.format('cross_attention')}norm."),
    (rf"{LAYER}cross_attn\.", rf"{OFFICIAL_LAYER.format('cross_attention')}multihead_attn."),
    (rf"{LAYER}final_layer_norm\.", rf"{OFFICIAL_LAYER.format('ffn')}norm."),
    (rf"{LAYER}fc", rf"{OFFICIAL_LAYER.format('ffn')}fc"),
    (r"\.fc([12])\.", r".linear\1."),
    (r"^model\.transformer_module\.decoder\.layernorm\.", "sem_seg_head.predictor.decoder_norm."),
    (
        r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
        r"sem_seg_head.predictor.mask_embed.layers.\1.",
    ),
    (r"^model\.transformer_module\.queries_embedder\.", "sem_seg_head.predictor.query_embed."),
    (r"^model\.transformer_module\.queries_features\.", "sem_seg_head.predictor.query_feat."),
    (r"^model\.transformer_module\.level_embed\.", "sem_seg_head.predictor.level_embed."),
    (r"^class_predictor\.", "sem_seg_head.predictor.class_embed."),
]
CONVERTER = RenamingConverter(RULES, mask2former.CONVERTER)
