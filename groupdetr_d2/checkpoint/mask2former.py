"""Official Mask2Former checkpoints (facebookresearch/Mask2Former), in both layouts of keys."""

import re

from .official import COMMON_RULES, Converter, StateDict

ENCODER = "head.neck.encoder."
DECODER_LAYER = r"^sem_seg_head\.predictor\.transformer_{}_layers\.(\d+)\."
RULES = [
    # older files lack the infix, and some have it twice: the official loader adds it to any file
    # without a version, and then says in the log alone that nothing was loaded
    (r"^sem_seg_head\.(?!predictor\.)(?:pixel_decoder\.)*", "sem_seg_head.pixel_decoder."),
    (r"^sem_seg_head\.predictor\.static_query\.", "sem_seg_head.predictor.query_feat."),
    (r"^backbone\.", "head.backbone."),  # Detectron2's names, see `finish`
    (r"^sem_seg_head\.pixel_decoder\.input_proj\.", "head.neck.neck.projections."),
    (r"^sem_seg_head\.pixel_decoder\.transformer\.level_embed$", f"{ENCODER}level_embedding"),
    (
        r"^sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.",
        "head.neck.encoder.layers.",
    ),
    (r"^(head\.neck\.encoder\.layers\.\d+)\.norm1\.", r"\1.norms.0."),
    (r"^(head\.neck\.encoder\.layers\.\d+)\.norm2\.", r"\1.norms.1."),
    (r"^sem_seg_head\.pixel_decoder\.adapter_1\.norm\.", "head.neck.lateral.1."),
    (r"^sem_seg_head\.pixel_decoder\.adapter_1\.", "head.neck.lateral.0."),
    (r"^sem_seg_head\.pixel_decoder\.layer_1\.norm\.", "head.neck.output.1."),
    (r"^sem_seg_head\.pixel_decoder\.layer_1\.", "head.neck.output.0."),
    (r"^sem_seg_head\.pixel_decoder\.mask_features\.", "head.neck.mask_features."),
    (r"^sem_seg_head\.predictor\.level_embed\.", "head.neck.level_embedding."),
    (r"^sem_seg_head\.predictor\.query_embed\.", "head.queries.bank."),
    (r"^sem_seg_head\.predictor\.query_feat\.", "head.queries.content_bank."),
    (r"^sem_seg_head\.predictor\.decoder_norm\.", "head.predictor.norm."),
    (r"^sem_seg_head\.predictor\.class_embed\.", "head.predictor.class_heads.0."),
    (r"^sem_seg_head\.predictor\.mask_embed\.", "head.predictor.mask_head."),
    (DECODER_LAYER.format("cross_attention") + r"norm\.", r"head.decoder.layers.\1.norms.0."),
    (
        DECODER_LAYER.format("cross_attention") + r"multihead_attn\.",
        r"head.decoder.layers.\1.cross_attn.",
    ),
    (DECODER_LAYER.format("self_attention") + r"norm\.", r"head.decoder.layers.\1.norms.1."),
    (DECODER_LAYER.format("self_attention") + r"self_attn\.", r"head.decoder.layers.\1.self_attn."),
    (DECODER_LAYER.format("ffn") + r"norm\.", r"head.decoder.layers.\1.norms.2."),
    (DECODER_LAYER.format("ffn"), r"head.decoder.layers.\1."),
    (r"\.(cross|self)_attn\.in_proj_(weight|bias)$", r".\1_attn.in_proj.\2"),
    *[rule for rule in COMMON_RULES if rule[1] in (".ffn.0.", ".ffn.2.")],
]
# of the criterion, whose weights the configuration has
LEFT_OUT = ("criterion.empty_weight",)


def leave_out(official: StateDict) -> StateDict:
    """Leaves out what is no part of the model."""
    return {key: value for key, value in official.items() if key not in LEFT_OUT}


def finish(converted: StateDict, prepared: StateDict) -> StateDict:
    """Takes the mark from the backbone's names, and counts decoder layers as we do."""
    return {_own_name(key): value for key, value in converted.items()}


def _own_name(name: str) -> str:
    """Counts layers from 1: our layer 0 is the queries by themselves."""
    name = re.sub(r"^head\.(?=backbone\.)", "", name)
    layer = r"^(head\.decoder\.layers\.)(\d+)"
    return re.sub(layer, lambda found: f"{found[1]}{int(found[2]) + 1}", name)


CONVERTER = Converter(RULES, leave_out, finish)
