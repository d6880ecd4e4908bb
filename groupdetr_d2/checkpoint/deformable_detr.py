"""Official Deformable DETR checkpoints (fundamentalvision/Deformable-DETR), in all their forms."""

import re

import torch

from .official import COMMON_RULES, Converter, StateDict

FIRST_STAGE = "head.queries.heads."
RULES = [
    (r"^query_embed\.weight$", "head.queries.bank.weight"),
    (r"^transformer\.reference_points\.", "head.queries.reference_head."),
    (r"^transformer\.level_embed$", "head.encoder.level_embedding"),
    (r"^transformer\.enc_output\.", f"{FIRST_STAGE}projection."),
    (r"^transformer\.enc_output_norm\.", f"{FIRST_STAGE}norm."),
    (r"^transformer\.enc_out_class_embed\.", f"{FIRST_STAGE}class_head."),
    (r"^transformer\.enc_out_bbox_embed\.", f"{FIRST_STAGE}box_head."),
    (r"^transformer\.pos_trans\.", "head.queries.content.projection."),
    (r"^transformer\.pos_trans_norm\.", "head.queries.content.norm."),
    (r"^input_proj\.(\d+)\.(\d)\.", r"head.neck.projections.\1.\2."),
    (r"^class_embed\.(\d+)\.", r"head.predictor.class_heads.\1."),
    (r"^bbox_embed\.(\d+)\.", r"head.predictor.layer_box_heads.\1."),
    (r"^(transformer\.decoder\.layers\.\d+)\.cross_attn\.", r"\1.cross_attn.attention."),
    # numbered in the order of the constructor; ours in the order of use
    (r"^(transformer\.decoder\.layers\.\d+)\.norm2\.", r"\1.norms.0."),
    (r"^(transformer\.decoder\.layers\.\d+)\.norm1\.", r"\1.norms.1."),
    *COMMON_RULES,
]


def untie(official: StateDict) -> StateDict:
    """Names every tensor once, and the last pair of a two-stage model's heads by what it does.

    Heads are registered with the decoder too, and heads that layers share once a layer.
    """
    tensors = {
        re.sub(r"^transformer\.decoder\.(class|bbox)_embed\.", r"\1_embed.", key): value
        for key, value in official.items()
    }
    if "transformer.pos_trans.weight" in tensors:
        last = max(int(key.split(".")[1]) for key in tensors if key.startswith("class_embed."))
        of_encoder = re.compile(rf"^(class|bbox)_embed\.{last}\.")
        tensors = {
            of_encoder.sub(r"transformer.enc_out_\1_embed.", key): value
            for key, value in tensors.items()
        }
    return {key: value for key, value in tensors.items() if not _repeats(key, value, tensors)}


def _repeats(key: str, value: torch.Tensor, tensors: StateDict) -> bool:
    """Whether a layer's pair of heads is that of the first layer, as in models that share heads."""
    part = re.match(r"^(class|bbox)_embed\.(\d+)\.", key)
    if not part or part[2] == "0":
        return False
    pair = "class_embed.{}.weight bbox_embed.{}.layers.0.weight".split()
    pairs = [(tensors.get(x.format(part[2])), tensors.get(x.format(0))) for x in pair]
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def stack(converted: StateDict, prepared: StateDict) -> StateDict:
    """Stacks the parts of the first stage as those of a single group."""
    if "transformer.pos_trans.weight" in prepared:
        # its class head says in channel 0 whether there is an object: no row is a COCO class
        for kind in ("weight", "bias"):
            name = f"{FIRST_STAGE}class_head.{kind}"
            rows = prepared[f"transformer.enc_out_class_embed.{kind}"]
            converted[name] = rows[: len(converted[name])].clone()
    return {
        key: value[None] if key.startswith(FIRST_STAGE) else value
        for key, value in converted.items()
    }


CONVERTER = Converter(RULES, untie, stack)
