"""Official SAM-DETR and SAM-DETR++ checkpoints (ZhangGongjie/SAM-DETR)."""

from .official import COMMON_RULES, Converter, StateDict

RULES = [
    (r"^query_embed\.weight$", "head.queries.bank.weight"),
    (r"^input_proj\.(\d+)\.(\d)\.", r"head.neck.projections.\1.\2."),
    # the same tensors as bbox_embed.*, registered a second time
    (r"^transformer\.decoder\.(bbox_embed)\.", r"\1."),
    (r"^bbox_embed\.(\d+)\.", r"head.predictor.layer_box_heads.\1."),
    (r"^class_embed\.(\d+)\.", r"head.predictor.class_heads.\1."),
    (r"\.ca_([qk])pos_sine_proj\.", r".cross_attn.\1_sine."),
    (r"\.point1\.0\.", ".cross_attn.aligner.reduce."),
    (r"\.point2\.", ".cross_attn.aligner.points."),
    (r"\.attn1\.", ".cross_attn.content_gate."),
    (r"\.attn2\.", ".cross_attn.position_gate."),
    (r"^transformer\.level_embed$", "head.encoder.level_embedding"),
    *COMMON_RULES,
]


def name_lone_projection(official: StateDict) -> StateDict:
    """Renames a projection without GroupNorm (50-epoch checkpoints): it has one index less."""
    if "input_proj.0.1.weight" in official:
        return official
    return {key.replace("input_proj.0.0.", "input_proj."): x for key, x in official.items()}


CONVERTER = Converter(RULES, name_lone_projection)
