"""Plain ViTs of other projects' files: MAE, ViTDet, SAM, CAE, and Hugging Face's ViTMAE and VitDet.

A file gives its tensors the names of this package's ViT first, which needs no model. The tensors
then get the shapes of a model: kernels of patches and tables of positions are resampled.
"""

import logging
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..layers.relative_position import resize_line, resize_table
from ..modeling.vit import ViT
from .files import CheckpointError
from .official import Rules, StateDict

logger = logging.getLogger(__name__)
PREFIX, PYRAMID = "backbone.net.", "backbone.simfp_"  # of this package's names, and Detectron2's
BLOCK = r"^(blocks\.\d+\.)"
# regular expressions and replacements, applied one after another
RULES: Rules = [
    (
        r"^(?:module\.)?(?:backbone\.net\.|image_encoder\.|encoder\.)?"
        r"(?=(?:patch_embed|pos_embed|cls_token|blocks|norm|fc_norm|neck)\b)",
        "",
    ),
    (r"^(?:vit|vitdet)\.(?=(?:embeddings|encoder|layers|layernorm)\.)", ""),
    (r"^embeddings\.(?:patch_embeddings\.)?projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(?=cls_token$)", ""),
    (r"^(?:encoder\.layer|layers)\.(?=\d+\.)", "blocks."),
    (BLOCK + r"attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.", r"\1attn.\2."),
    (BLOCK + r"attention\.(?:output\.dense|o_proj|proj)\.", r"\1attn.proj."),
    (BLOCK + r"attention\.(?=qkv\.|rel_pos_)", r"\1attn."),
    (BLOCK + r"layernorm_before\.", r"\1norm1."),
    (BLOCK + r"layernorm_after\.", r"\1norm2."),
    (BLOCK + r"(?:intermediate\.dense|mlp\.lin1)\.", r"\1mlp.fc1."),
    (BLOCK + r"(?:output\.dense|mlp\.lin2)\.", r"\1mlp.fc2."),
]
KNOWN = re.compile(
    r"pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d+\.(norm[12]\.(weight|bias)"
    r"|attn\.(qkv|q|k|v|proj)\.(weight|bias)|attn\.(q_bias|k_bias|v_bias|rel_pos_h|rel_pos_w)"
    r"|mlp\.fc[12]\.(weight|bias)|gamma_[12])"
)
MARKS = {"patch_embed.proj.weight", "blocks.0.norm1.weight"}  # which every plain ViT has
OWN_HEAD = "head.decoder."  # in the names of this package's detectors
SHOWN = 3


def name_vit(tensors: StateDict, path: str) -> tuple[StateDict, list[str]] | None:
    """Gives a ViT's tensors the names of this package.

    The row of the class token leaves the table of positions, separate queries, keys and values
    become one matrix, and biases that a file has of some of the three alone are 0 for the others.

    Args:
        path: what errors call the file.

    Returns:
        the tensors by their names here, and the names that no backbone has, such as those of
        decoders, heads and a last norm; None if this is no plain ViT, or a detector of ours.

    Raises:
        CheckpointError: its blocks have parts that this package's do not have.
    """
    if any(name.startswith(OWN_HEAD) for name in tensors):
        return None
    names = {name: _own_name(name) for name in tensors}
    if not set(names.values()) >= MARKS:
        return None
    strange = [x for x, own in names.items() if own.startswith("blocks.") and not _is_known(own)]
    if strange:
        raise CheckpointError(
            f"{path}: the blocks of its ViT have {', '.join(strange[:SHOWN])}, which those of "
            "build_vit_pyramid_backbone do not have: it is another architecture, which "
            "build_transformers_backbone may have"
        )
    kept = [name for name, own in names.items() if _is_known(own)]
    if len({names[name] for name in kept}) < len(kept):
        raise CheckpointError(f"{path} has more than one ViT: leave one of them in the file")
    found = {names[name]: torch.as_tensor(tensors[name]) for name in kept}
    left_out = [name for name in tensors if name not in kept]
    pyramid = {x: torch.as_tensor(tensors[x]) for x in left_out if x.startswith(PYRAMID)}
    left_out = [name for name in left_out if name not in pyramid]
    try:
        found = _with_plain_table(_with_joined_parts(found))
    except RuntimeError as error:  # tensors of strange shapes
        raise CheckpointError(f"{path}: its ViT has tensors of strange shapes ({error})") from error
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    logger.info("%s has a plain ViT: %d tensors for the backbone", path, len(found) + len(pyramid))
    return {f"{PREFIX}{name}": value for name, value in found.items()} | pyramid, left_out


def _own_name(name: str) -> str:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _is_known(name: str) -> bool:
    return bool(KNOWN.fullmatch(name))


def _with_joined_parts(found: StateDict) -> StateDict:
    """Joins the weights and the biases of queries, keys and values, block by block."""
    part = re.compile(r"(blocks\.\d+\.attn\.)(q|k|v)(\.weight|\.bias|_bias)")
    joined = {name: value for name, value in found.items() if not part.fullmatch(name)}
    kinds: dict[str, dict[str, Tensor]] = {}
    for name, value in found.items():
        match = part.fullmatch(name)
        if match:
            kind = "weight" if match[3] == ".weight" else "bias"
            kinds.setdefault(f"{match[1]}qkv.{kind}", {})[match[2]] = value
    for name, parts in kinds.items():
        if name in joined or (name.endswith("weight") and len(parts) < 3):
            raise UserError(f"{name} is there twice, or a part of it is missing")
        absent = torch.zeros_like(next(iter(parts.values())))  # a bias that the file does not have
        joined[name] = torch.cat([parts.get(x, absent) for x in "qkv"])
    return joined


def _with_plain_table(found: StateDict) -> StateDict:
    """Makes a table (1, S * S, C) of positions of one with a class token, or of a grid (SAM)."""
    table = found.get("pos_embed")
    if table is None:
        return found
    table = table.flatten(1, 2) if table.ndim == 4 else table
    rows = table.shape[1] if table.ndim == 3 else 0
    if _is_square(rows - 1) and not _is_square(rows):
        table = table[:, 1:]
    elif not _is_square(rows):
        raise UserError(
            f"its table of positions {tuple(table.shape)} has no square number of rows, with or "
            "without one more for a class token"
        )
    return found | {"pos_embed": table}


def _is_square(number: int) -> bool:
    return number > 0 and round(number**0.5) ** 2 == number


def fit_vit(state: StateDict, prefix: str, vit: ViT) -> list[str]:
    """Gives a ViT's tensors the shapes of a model, in place.

    Tables of absolute positions are resized bicubically, those of relative positions linearly, and
    kernels of patches by :func:`resize_kernel`. Factors of channels (layer scale) that the model
    does not have become part of the weights before them, which changes no output.

    Args:
        prefix: of the ViT's names in the model and in the state dict, with its dot.

    Returns:
        the names of the tensors that were resampled.

    Raises:
        UserError: the ViT has another number of channels, blocks or attention heads.
    """
    _check_size(state, prefix, vit)
    _fold_layer_scale(state, prefix, vit)
    changed = []
    for key, own in vit.state_dict().items():
        found = state.get(f"{prefix}{key}")
        if found is None or tuple(found.shape) == tuple(own.shape):
            continue
        resampled = _resampled(key, torch.as_tensor(found), own)
        if resampled is not None:
            logger.info("%s: %s resampled to %s", key, tuple(found.shape), tuple(own.shape))
            state[f"{prefix}{key}"] = resampled
            changed.append(f"{prefix}{key}")
    return changed


def _resampled(key: str, value: Tensor, own: Tensor) -> Tensor | None:
    """Returns a tensor in the shape of the model's, None if there is no way to it."""
    if value.ndim != own.ndim:
        return None
    same_channels = value.shape[-1] == own.shape[-1]
    if key == "pos_embed" and same_channels and _is_square(value.shape[1]):
        side = round(own.shape[1] ** 0.5)
        return resize_table(value.float(), (side, side)).flatten(1, 2).to(value.dtype)
    if key.endswith((".rel_pos_h", ".rel_pos_w")) and same_channels and len(value):
        return resize_line(value.float(), len(own)).to(value.dtype)
    if key == "patch_embed.proj.weight" and value.shape[:2] == own.shape[:2]:
        is_square = value.shape[2] == value.shape[3] > 0
        return resize_kernel(value, own.shape[-1]) if is_square else None
    return None


def resize_kernel(kernel: Tensor, size: int) -> Tensor:
    """Resamples a kernel of patches (C, channels, S, S) to (C, channels, size, size).

    The result is the one that gives patches which are enlarged bicubically to the new size the same
    embeddings as the kernel gives the patches themselves; where patches become smaller it is the
    best one in the sense of least squares (the pseudo-inverse of Beyer et al., 2023, FlexiViT).
    Scaling the kernel alone would change the embeddings.
    """
    side = kernel.shape[-1]
    patches = torch.eye(side * side, dtype=torch.double).view(-1, 1, side, side)
    resized = F.interpolate(patches, (size, size), mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(resized.flatten(1))  # (size * size, S * S)
    found = kernel.flatten(2).double() @ inverse.T
    return found.unflatten(-1, (size, size)).to(kernel.dtype)


def _check_size(state: StateDict, prefix: str, vit: ViT) -> None:
    name = f"{prefix}blocks.0.norm1.weight"
    if name not in state:
        return
    number = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
    places = [int(found[1]) for found in map(number.match, state) if found]
    theirs, own = (len(state[name]), max(places) + 1), (vit.embed_dim, len(vit.blocks))
    if theirs != own:
        raise UserError(
            f"the checkpoint's ViT has {theirs[0]} channels and {theirs[1]} blocks, the model's "
            f"{own[0]} and {own[1]}: take the yaml of its size, or MODEL.VIT.EMBED_DIM "
            f"{theirs[0]} MODEL.VIT.DEPTH {theirs[1]} with its heads and global blocks"
        )
    table = state.get(f"{prefix}blocks.0.attn.rel_pos_h")
    width = vit.embed_dim // vit.blocks[0].attn.num_heads
    if table is not None and table.ndim == 2 and table.shape[1] != width:
        raise UserError(
            f"the checkpoint's ViT has attention heads of {table.shape[1]} channels, the model's "
            f"{width}: MODEL.VIT.NUM_HEADS {vit.embed_dim // max(table.shape[1], 1)}"
        )


def _fold_layer_scale(state: StateDict, prefix: str, vit: ViT) -> None:
    """Multiplies rows and biases by the factors that the model does not have."""
    folded, names = 0, set(state)
    for i, block in enumerate(vit.blocks):
        for gamma, linear in (("gamma_1", "attn.proj"), ("gamma_2", "mlp.fc2")):
            name = f"{prefix}blocks.{i}."
            weight, bias = (f"{name}{linear}.{kind}" for kind in ("weight", "bias"))
            if getattr(block, gamma) is not None or not {f"{name}{gamma}", weight, bias} <= names:
                continue
            factors = torch.as_tensor(state.pop(f"{name}{gamma}"))
            state[weight] = torch.as_tensor(state[weight]) * factors[:, None]
            state[bias] = torch.as_tensor(state[bias]) * factors
            folded += 1
    if folded:
        logger.info("layer scale: %d tensors became part of attn.proj and mlp.fc2", folded)
