"""Hugging Face `transformers` checkpoints of Deformable DETR, one-stage or two-stage.

Their names, those of files on the hub and those of `transformers` 5, are turned into the official
ones first.
"""

from . import deformable_detr
from .hugging_face_names import RenamingConverter
from .official import Rules

RULES: Rules = [
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.input_proj\.", "input_proj."),
    (r"^model\.", "transformer."),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
    (r"^(transformer\.encoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(transformer\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"\.self_attn_layer_norm\.", ".norm2."),
    (r"\.encoder_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
]
CONVERTER = RenamingConverter(RULES, deformable_detr.CONVERTER)
