"""Hugging Face `transformers` checkpoints of Deformable DETR, one-stage or two-stage.

Their names, those of files on the hub and those of `transformers` 5, are turned into the official
ones first.
"""

import re

import torch

from . import deformable_detr
from .hugging_face import backbone_key
from .official import Rules, StateDict

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
IN_PROJECTION = re.compile(r"^(.*\.self_attn)\.q_proj\.(weight|bias)$")


def official_state_dict(state_dict: StateDict) -> StateDict:
    """Renames the transformer's tensors officially; the backbone's are left out."""
    renamed = {}
    for key, value in state_dict.items():
        if key.startswith("model.backbone."):
            continue
        for pattern, replacement in RULES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    for key in [key for key in renamed if IN_PROJECTION.match(key)]:
        prefix, kind = IN_PROJECTION.match(key).groups()
        parts = [renamed.pop(f"{prefix}.{x}_proj.{kind}") for x in "qkv"]
        renamed[f"{prefix}.in_proj_{kind}"] = torch.cat(parts)
    return renamed


def convert_state_dict(
    official: StateDict, *, num_queries: int = 300, num_classes: int = 80
) -> tuple[StateDict, list[str]]:
    """Converts a state dict; see :meth:`.official.Converter.convert_state_dict`."""
    converted, unmapped = deformable_detr.CONVERTER.convert_state_dict(
        official_state_dict(official), num_queries=num_queries, num_classes=num_classes
    )
    for key, value in official.items():
        if key.startswith("model.backbone."):
            name = backbone_key(key)
            if name is None:
                unmapped.append(key)
            else:
                converted[name] = value.clone()
    return converted, unmapped
