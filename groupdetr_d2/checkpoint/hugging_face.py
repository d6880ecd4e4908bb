"""Hugging Face `transformers` checkpoints of Conditional DETR and DAB-DETR.

The names are those of the files on the hub and those of `transformers` 5, which differ; the
backbone is that of timm or of `transformers` itself.
"""

import re

import torch

from .official import Rules, StateDict, describe_bank, resnet_key, select_classes

BACKBONE = re.compile(
    r"^model\.(backbone|pixel_level_module\.encoder)\.(conv_encoder\.)?(model\.|_backbone\.)?"
)
RULES: Rules = [
    (r"^model\.input_projection\.", "head.neck.projections.0."),
    (r"^model\.query_(position|refpoint)_embeddings\.", "head.queries.bank."),
    (r"^model\.encoder\.query_scale\.", "head.encoder.pos_scale."),
    (
        r"^model\.decoder\.(ref_point_head|ref_anchor_head|query_scale)\.",
        r"head.decoder.query_position.\1.",
    ),
    (r"^(class_labels_classifier|class_embed)\.", "head.predictor.class_heads.0."),
    (r"^(bbox_predictor|model\.decoder\.bbox_embed)\.", "head.predictor.layer_box_heads.0."),
    (r"^model\.decoder\.layernorm\.", "head.decoder.norm."),
    (r"^model\.(encoder|decoder)\.layers\.", r"head.\1.layers."),
    # norms, before the attention that DAB-DETR keeps them in loses its name
    (r"\.(self_attn\.)?self_attn_layer_norm\.", ".norms.0."),
    (r"\.(encoder_attn_layer_norm|cross_attn\.cross_attn_layer_norm)\.", ".norms.1."),
    (r"^(head\.encoder\..*?)\.final_layer_norm\.", r"\1.norms.1."),
    (r"\.(mlp\.)?final_layer_norm\.", ".norms.2."),
    (r"\.(mlp\.)?fc1\.", ".ffn.0."),
    (r"\.(mlp\.)?activation_fn\.", ".ffn.1.0."),
    (r"\.(mlp\.)?fc2\.", ".ffn.2."),
    # attention of the decoder: hub names, those of transformers 5, those of its DAB-DETR
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.sa_([qkv])(content|pos)?_?proj\.", r".self_attn.\1_\2_proj."),
    (r"\.ca_([qkv])(content|pos)?_?(sine_)?proj\.", r".cross_attn.\1_\2_\3proj."),
    (r"\.(self|cross)_attn\.\1_attn_query_", r".\1_attn.q_"),
    (r"\.(self|cross)_attn\.\1_attn_key_", r".\1_attn.k_"),
    (r"\.(self|cross)_attn\.\1_attn_value_proj\.", r".\1_attn.v."),
    (r"\.(self|cross)_attn\.\1_attn\.output_proj\.", r".\1_attn.out_proj."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.([qk])_(content|pos)_proj\.", r".\1_\2."),
    (r"\.q_pos_sine_proj\.", ".q_sine."),
    (r"^(head\.decoder\..*)\.v__?proj\.", r"\1.v."),
    (r"^(head\.decoder\..*)\.v_proj\.", r"\1.v."),
]


def convert_key(key: str) -> str | None:
    """Finds our name of a parameter, or None. Encoder attention stays in three parts."""
    if BACKBONE.match(key):
        return backbone_key(key)
    for pattern, replacement in RULES:
        key = re.sub(pattern, replacement, key)
    if key == "head.decoder.query_position.ref_point_head" or not key.startswith("head."):
        return None
    return key


def backbone_key(key: str) -> str | None:
    """Finds Detectron2's name of a ResNet's parameter from timm's or transformers', or None."""
    if key.endswith("num_batches_tracked"):
        return None
    key = BACKBONE.sub("", key).replace("normalization", "norm")
    stem = re.match(r"^embedder\.embedder\.(?:convolution|(norm))\.(.*)$", key)
    if stem:
        return f"backbone.stem.conv1.{'norm.' if stem[1] else ''}{stem[2]}"
    block = re.match(r"^encoder\.stages\.(\d)\.layers\.(\d+)\.(.*)$", key)
    if not block:
        return resnet_key(f"backbone.0.body.{key}")
    rest = block[3].replace("convolution.", "")
    rest = re.sub(r"^layer\.(\d)\.", lambda m: f"conv{int(m[1]) + 1}.", rest)
    return f"backbone.res{int(block[1]) + 2}.{block[2]}.{rest}"


def convert_state_dict(
    official: StateDict, *, num_queries: int = 300, num_classes: int = 80
) -> tuple[StateDict, StateDict]:
    """Converts a state dict; also returns the tensors that have no name here.

    Args:
        num_queries: N of the model.
        num_classes: 80 selects COCO's classes from the hub's 91 columns; 91 keeps the columns.
    """
    converted: StateDict = {}
    unmapped: StateDict = {}
    is_dab_detr = any("ref_anchor_head" in key for key in official)
    for key, value in official.items():
        name = convert_key(key)
        if name is None:
            unmapped[key] = value
            continue
        if "ref_point_head" in name and not is_dab_detr:
            name = name.replace("head.decoder.query_position.", "head.queries.")
        converted[name] = select_classes(name, value, num_classes).clone()
    converted = join_projections(converted)
    return converted | describe_bank(converted, num_queries), unmapped


def join_projections(converted: StateDict) -> StateDict:
    """Makes one matrix of the encoder's query, key and value projections."""
    joined = {}
    for name, value in converted.items():
        match = re.match(r"^(head\.encoder\..*\.self_attn)\.([qkv])_proj\.(weight|bias)$", name)
        if not match:
            joined[name] = value
        elif match[2] == "q":
            parts = [converted[f"{match[1]}.{x}_proj.{match[3]}"] for x in "qkv"]
            joined[f"{match[1]}.in_proj.{match[3]}"] = torch.cat(parts)
    return joined
