"""Conversion of official PETR and PETRv2 checkpoints, and of VoVNet backbones.

Official weights predict the yaw of mmdet3d before version 1.0, which runs clockwise from another
axis: its sine is -cos(yaw) and its cosine -sin(yaw). The two rows of the last layers that predict
them are exchanged and negated here, so that everything else knows the usual yaw alone.
"""

import re
from functools import partial

from torch import Tensor

from .official import Converter, Rules, StateDict

# the weights of depth estimation that were then trained on nuScenes' validation scenes, too
SEEN_VALIDATION = "dd3d_det_final"

BLOCK = r"^head\.backbone\.stage(\d)\.OSA\d_(\d+)\."
BACKBONE_RULES: Rules = [
    (
        r"^(?:img_backbone\.|backbone\.bottom_up\.|backbone\.)?(?=stem\.|stage\d\.)",
        "head.backbone.",
    ),
    (r"^head\.backbone\.stem\.stem_1/", "head.backbone.stem.0."),
    (r"^head\.backbone\.stem\.stem_2/", "head.backbone.stem.1."),
    (r"^head\.backbone\.stem\.stem_3/", "head.backbone.stem.2."),
    (BLOCK + r"layers\.(\d)\.[^/]*/", r"head.backbone.stages.stage\1.\2.layers.\3."),
    (BLOCK + r"concat\.[^/]*/", r"head.backbone.stages.stage\1.\2.concat."),
    (BLOCK + r"ese\.fc\.", r"head.backbone.stages.stage\1.\2.attention."),
]
HEAD_RULES: Rules = [
    (r"^img_neck\.lateral_convs\.(\d)\.conv\.", r"head.neck.pyramid.laterals.\1."),
    (r"^img_neck\.fpn_convs\.0\.conv\.", "head.neck.pyramid.output."),
    (r"^pts_bbox_head\.", "head."),
    (r"^head\.input_proj\.", "head.neck.projection."),
    (r"^head\.position_encoder\.0\.", "head.neck.position.ray.layers.0."),
    (r"^head\.position_encoder\.2\.", "head.neck.position.ray.layers.1."),
    (r"^head\.adapt_pos3d\.0\.", "head.neck.position.place.layers.0."),
    (r"^head\.adapt_pos3d\.2\.", "head.neck.position.place.layers.1."),
    (r"^head\.fpe\.conv_reduce\.", "head.neck.position.gate.layers.0."),
    (r"^head\.fpe\.conv_expand\.", "head.neck.position.gate.layers.1."),
    (r"^head\.reference_points\.", "head.queries.bank."),
    (r"^head\.query_embedding\.0\.", "head.queries.position.layers.0."),
    (r"^head\.query_embedding\.2\.", "head.queries.position.layers.1."),
    (r"^head\.cls_branches\.", "head.predictor.class_heads."),
    (r"^head\.reg_branches\.", "head.predictor.box_heads."),
    (r"^(head\.predictor\.box_heads\.\d+)\.reg_branch\.0\.", r"\1.trunk.0."),
    (r"^(head\.predictor\.box_heads\.\d+)\.reg_branch\.3\.", r"\1.trunk.2."),
    (r"^(head\.predictor\.box_heads\.\d+)\.task_heads\.(\d)\.0\.", r"\1.heads.\2.layers.0."),
    (r"^(head\.predictor\.box_heads\.\d+)\.task_heads\.(\d)\.2\.", r"\1.heads.\2.layers.1."),
    (r"^(head\.predictor\.box_heads\.\d+)\.0\.", r"\1.layers.0."),
    (r"^(head\.predictor\.box_heads\.\d+)\.2\.", r"\1.layers.1."),
    (r"^(head\.predictor\.box_heads\.\d+)\.4\.", r"\1.layers.2."),
    (r"^head\.transformer\.", "head."),
    # names of before March 2022 come second
    (r"^(head\.decoder\.layers\.\d+)\.(?:attentions\.0|self_attn)\.(?:attn\.)?", r"\1.self_attn."),
    (
        r"^(head\.decoder\.layers\.\d+)\.(?:attentions\.1|multihead_attn)\.(?:attn\.)?",
        r"\1.cross_attn.",
    ),
    (r"^(head\.decoder\.layers\.\d+)\.ffns\.0\.layers\.0\.0\.", r"\1.ffn.0."),
    (r"^(head\.decoder\.layers\.\d+)\.ffns\.0\.layers\.1\.", r"\1.ffn.2."),
    (r"^head\.decoder\.post_norm\.", "head.decoder.norm."),
    (r"\.(cross|self)_attn\.in_proj_(weight|bias)$", r".\1_attn.in_proj.\2"),
]
# all layers of PETR have the same heads
SHARED_RULES: Rules = [
    (r"^(head\.predictor\.(?:class|box)_heads)\.\d+\.", r"\1.0."),
]
LEFT_OUT = re.compile(r"num_batches_tracked$|^pts_bbox_head\.code_weights$")
YAW_ROWS = {
    r"\.box_heads\.\d+\.layers\.2\.": (6, 7),  # of PETR, the whole code
    r"\.box_heads\.\d+\.heads\.3\.layers\.1\.": (0, 1),  # of PETRv2, sine and cosine alone
}


def leave_out(official: StateDict) -> StateDict:
    """Leaves out counters of batches and the weights of the loss."""
    return {key: value for key, value in official.items() if not LEFT_OUT.search(key)}


def finish(converted: StateDict, prepared: StateDict) -> StateDict:
    """Counts blocks from 0, makes matrices of 1 x 1 convolutions, and turns the yaw around."""
    return {_own_name(key): _own_value(key, value) for key, value in converted.items()}


def _own_name(name: str) -> str:
    name = re.sub(r"^head\.(?=backbone\.)", "", name)
    block = r"^(backbone\.stages\.stage\d\.)(\d+)"
    return re.sub(block, lambda found: f"{found[1]}{int(found[2]) - 1}", name)


def _own_value(name: str, value: Tensor) -> Tensor:
    if re.search(r"\.(projection|ray|place|gate)\.", name) and value.dim() == 4:
        value = value[:, :, 0, 0]
    for pattern, (sine, cosine) in YAW_ROWS.items():
        if re.search(pattern, name) and len(value) > cosine:
            value = value.clone()
            value[[sine, cosine]] = -value[[cosine, sine]]
    return value


def validation_warning(path: str) -> str:
    """Returns a warning if a file's name is that of weights that have seen validation scenes."""
    if SEEN_VALIDATION not in path.lower():
        return ""
    return (
        f"{path}: weights of this name ({SEEN_VALIDATION}) were trained on nuScenes' validation "
        "scenes, too; results on nuscenes_val would be too good to report\n"
    )


make_converter = partial(Converter, prepare=leave_out, finish=finish)
CONVERTER = make_converter([*BACKBONE_RULES, *HEAD_RULES, *SHARED_RULES])
CONVERTER_V2 = make_converter([*BACKBONE_RULES, *HEAD_RULES])
BACKBONE_CONVERTER = make_converter(BACKBONE_RULES)
