"""Official Conditional DETR checkpoints (Atten4Vis/ConditionalDETR, main and GroupDETR branches).

The key names are those of the released files; the group branch differs in the rows of
`query_embed.weight` alone.
"""

import re

import torch
from torch import Tensor

from .checkpointer import CheckpointError

# rows of the official 91-column heads (index = COCO category id) that are COCO's 80 classes
COCO_CATEGORY_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]

TORCHVISION_RESNET = [
    (r"^backbone\.0\.body\.layer(\d)\.(\d+)\.downsample\.0\.", r"backbone.res{stage}.\2.shortcut."),
    (
        r"^backbone\.0\.body\.layer(\d)\.(\d+)\.downsample\.1\.",
        r"backbone.res{stage}.\2.shortcut.norm.",
    ),
    (r"^backbone\.0\.body\.layer(\d)\.(\d+)\.bn(\d)\.", r"backbone.res{stage}.\2.conv\3.norm."),
    (r"^backbone\.0\.body\.layer(\d)\.(\d+)\.conv(\d)\.", r"backbone.res{stage}.\2.conv\3."),
    (r"^backbone\.0\.body\.conv1\.", "backbone.stem.conv1."),
    (r"^backbone\.0\.body\.bn1\.", "backbone.stem.conv1.norm."),
]
TRANSFORMER = [
    (r"^input_proj\.", "head.neck.projections.0."),
    (r"^query_embed\.weight$", "head.queries.bank.weight"),
    (r"^class_embed\.", "head.predictor.class_heads.0."),
    (r"^bbox_embed\.", "head.predictor.layer_box_heads.0."),
    (r"^transformer\.decoder\.ref_point_head\.", "head.queries.ref_point_head."),
    (r"^transformer\.decoder\.query_scale\.", "head.decoder.query_position.query_scale."),
    (r"\.self_attn\.in_proj_(weight|bias)$", r".self_attn.in_proj.\1"),
    (r"\.sa_([qk])content_proj\.", r".self_attn.\1_content."),
    (r"\.sa_([qk])pos_proj\.", r".self_attn.\1_pos."),
    (r"\.sa_v_proj\.", ".self_attn.v."),
    (r"\.ca_([qk])content_proj\.", r".cross_attn.\1_content."),
    (r"\.ca_qpos_sine_proj\.", ".cross_attn.q_sine."),
    (r"\.ca_([qk])pos_proj\.", r".cross_attn.\1_pos."),
    (r"\.ca_v_proj\.", ".cross_attn.v."),
    (r"\.linear1\.", ".ffn.0."),
    (r"\.linear2\.", ".ffn.2."),
    (r"^transformer\.(.*)\.norm1\.", r"transformer.\1.norms.0."),
    (r"^transformer\.(.*)\.norm2\.", r"transformer.\1.norms.1."),
    (r"^transformer\.(.*)\.norm3\.", r"transformer.\1.norms.2."),
    (r"^transformer\.", "head."),
]


def convert_key(key: str) -> str | None:
    """Our name of an official parameter; None if it has no place in our model."""
    if key.endswith("num_batches_tracked"):
        return None
    name = key
    for pattern, replacement in TORCHVISION_RESNET:
        match = re.match(pattern, key)
        if match:
            stage = str(int(match[1]) + 1) if "{stage}" in replacement else ""
            return re.sub(pattern, replacement.replace("{stage}", stage), key)
    for pattern, replacement in TRANSFORMER:
        name = re.sub(pattern, replacement, name)
    return name if name.startswith("head.") else None


def convert_state_dict(
    official: dict[str, Tensor], *, num_queries: int = 300, num_classes: int = 80
) -> tuple[dict[str, Tensor], list[str]]:
    """An official state dict under our names.

    Args:
        num_queries: N, to tell how many groups the rows of `query_embed.weight` are.
        num_classes: 80 selects COCO's classes from the official 91 columns; 91 keeps the columns.

    Returns:
        the converted state dict, and the official keys that found no home.
    """
    converted, homeless = {}, []
    for key, value in official.items():
        name = convert_key(key)
        if name is None:
            homeless.append(key)
            continue
        if name.startswith("head.predictor.class_heads.") and num_classes == 80:
            value = value[COCO_CATEGORY_IDS] if len(value) == 91 else value
        converted[name] = value.clone()
    bank = converted.get("head.queries.bank.weight")
    if bank is not None:
        if len(bank) % num_queries:
            raise CheckpointError(
                f"query_embed.weight has {len(bank)} rows, which are no whole number of groups of "
                f"{num_queries} queries: set MODEL.DETR.NUM_OBJECT_QUERIES to the checkpoint's"
            )
        shape = torch.tensor([len(bank) // num_queries, num_queries])
        converted["head.queries.bank.shape"] = shape
    return converted, homeless
