"""Conversion of official checkpoint files to this package's key names."""

import argparse
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from detectron2.modeling import build_model

from ..config import build_config
from ..config.files import config_folder
from ..errors import UserError
from . import (
    conditional_detr,
    dab_deformable_detr,
    dab_detr,
    deformable_detr,
    dino,
    dn_detr,
    hugging_face,
    hugging_face_deformable,
    hugging_face_mask2former,
    mask2former,
    petr,
    sam_detr,
)
from .files import CheckpointError, check_sums, write_safely
from .fitting import fit_state_dict
from .loading_report import kinds_of
from .run_info import RunInfo
from .safe_pickle import load_pickle
from .structure import check_structure
from .vit_files import name_vit

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
# per source: the converter and the configuration whose model must be filled
CONDITIONAL_DETR = "ConditionalDETR/conditional_detr_R_50_50ep.yaml"
PETR = "PETR/petr_V2_99_800x320_24ep.yaml"
# sources whose files have this part of a model alone
PARTS = {"vovnet": "backbone."}
MASK2FORMER = "Mask2Former/mask2former_R_50_50ep.yaml"
VIT_SIZES = {1024: "L", 1280: "H"}  # of MODEL.VIT.EMBED_DIM, in the names of yamls
SOURCES: dict[str, tuple[Any, str]] = {
    "conditional-detr": (
        conditional_detr.CONVERTER,
        "ConditionalDETR/conditional_detr_R_50_50ep.yaml",
    ),
    "dab-detr": (dab_detr.CONVERTER, "DAB-DETR/dab_detr_R_50_50ep.yaml"),
    "dn-detr": (dn_detr.CONVERTER, "DN-DETR/dn_detr_R_50_50ep.yaml"),
    "deformable-detr": (
        deformable_detr.CONVERTER,
        "Deformable-DETR/deformable_detr_R_50_50ep.yaml",
    ),
    "dab-deformable-detr": (
        dab_deformable_detr.CONVERTER,
        "DAB-Deformable-DETR/dab_deformable_detr_R_50_50ep.yaml",
    ),
    "dn-dab-deformable-detr": (
        dab_deformable_detr.CONVERTER,
        "DAB-Deformable-DETR/dn_dab_deformable_detr_R_50_50ep.yaml",
    ),
    "dino": (dino.CONVERTER, "DINO/dino_4scale_R_50_12ep.yaml"),
    "hf-conditional-detr": (hugging_face, CONDITIONAL_DETR),
    "hf-dab-detr": (hugging_face, "DAB-DETR/dab_detr_R_50_50ep.yaml"),
    "hf-deformable-detr": (
        hugging_face_deformable.CONVERTER,
        "Deformable-DETR/deformable_detr_R_50_50ep.yaml",
    ),
    "hf-mask2former": (hugging_face_mask2former.CONVERTER, MASK2FORMER),
    "mask2former": (mask2former.CONVERTER, MASK2FORMER),
    "petr": (petr.CONVERTER, PETR),
    "petrv2": (petr.CONVERTER_V2, "PETR/petrv2_V2_99_800x320_24ep.yaml"),
    "vovnet": (petr.BACKBONE_CONVERTER, PETR),
    "sam-detr": (sam_detr.CONVERTER, "SAM-DETR/sam_detr_R_50_12ep.yaml"),
}


def convert_file(args: argparse.Namespace) -> None:
    """Converts a file; checks it against the keys and shapes of the model."""
    default_config = SOURCES[args.source][1]
    cfg = build_config(args.config_file or str(config_folder() / default_config), args.opts)
    official, trained_with = read_official(args.input)
    sys.stderr.write(petr.validation_warning(args.input))
    check_dilation(cfg, trained_with, args.input)
    detr = cfg.MODEL.DETR
    converted, unmapped = convert_tensors(
        args.source, official, detr.NUM_OBJECT_QUERIES, detr.NUM_CLASSES, args.input
    )
    shape = converted.get("head.queries.bank.shape")
    if shape is not None:
        detr.NUM_GROUPS = int(shape[0])
    part = PARTS.get(args.source, "")
    own = {key: shape for key, shape in own_shapes(cfg).items() if key.startswith(part)}
    unmapped |= {key: value for key, value in converted.items() if key not in own}
    for key, value in unmapped.items():
        sys.stdout.write(f"no name for {key} {tuple(value.shape)}\n")
    converted = {key: value for key, value in converted.items() if key in own}
    check_complete(own, converted, args.input)
    write_safely(args.output, {"model": converted, "run": RunInfo(cfg).state_dict()})
    queries = f"K = {detr.NUM_GROUPS} groups of N = {detr.NUM_OBJECT_QUERIES} queries, "
    queries = "" if part else queries  # a backbone has none
    sys.stdout.write(
        f"{args.output}: {len(converted)} tensors, {queries}{len(unmapped)} official keys without "
        "a home\n"
    )


def convert_vit(args: argparse.Namespace) -> None:
    """Converts the file of a plain ViT to the shapes of a yaml's, and says what it does not have.

    The yaml is that of its number of channels, unless `args` names another. What a file lacks, such
    as the pyramid, is left out: it starts as in a new model.
    """
    found = name_vit(read_official(args.input)[0], args.input)
    if found is None:
        raise CheckpointError(f"{args.input} has no plain ViT")
    tensors, left_out = found
    size = VIT_SIZES.get(len(tensors["backbone.net.blocks.0.norm1.weight"]), "B")
    default = str(config_folder() / f"DINO/dino_4scale_ViT_{size}_objects365_24ep.yaml")
    cfg = build_config(args.config_file or default, args.opts)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):  # shapes alone
        model = build_model(cfg)
    cfg.MODEL.DEVICE = "cpu"
    resized = fit_state_dict(tensors, model)
    own = {key: tuple(x.shape) for key, x in model.state_dict().items() if key[:9] == "backbone."}
    kept = {key: x for key, x in tensors.items() if own.get(key) == tuple(x.shape)}
    write_safely(args.output, {"model": kept, "run": RunInfo(cfg).state_dict()})
    lists = {
        "resampled": resized,
        "not in the file, which start as in a new model": [x for x in own if x not in kept],
        "of the file, without a place in the model": [x for x in tensors if x not in kept],
        "of the file, which are no part of a backbone": left_out,
    }
    for what, names in lists.items():
        if names:
            sys.stdout.write(f"{what}: {kinds_of(names)}\n")
    sys.stdout.write(f"{args.output}: {len(kept)} of the {len(own)} tensors of a backbone\n")


def convert_tensors(
    source: str,
    official: dict[str, torch.Tensor],
    num_queries: int,
    num_classes: int,
    path: str,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Renames the tensors of a source; also returns those that have no name here.

    Args:
        num_queries: N of the model.
        num_classes: 80 selects COCO's classes from 91 rows.
        path: what errors call the file.

    Raises:
        CheckpointError: they are none of that source.
    """
    try:
        return SOURCES[source][0].convert_state_dict(
            official, num_queries=num_queries, num_classes=num_classes
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # tensors of strange shapes raise many kinds
        raise CheckpointError(
            f"{path} is no checkpoint of {source}: {type(error).__name__}: {error}"
        ) from error


def read_official(path: str) -> tuple[dict[str, torch.Tensor], argparse.Namespace]:
    """Reads the state dict of an official file, or of a folder that `save_pretrained` wrote.

    Official files hold their command line beside it; it comes back too, empty if there is none.
    """
    file = next((f for f in map(Path(path).joinpath, FOLDER_FILES) if f.is_file()), Path(path))
    if not file.is_file():
        raise CheckpointError(f"the checkpoint {file} does not exist")
    try:
        loaded = _load(file)
        loaded = loaded if isinstance(loaded, dict) else {"model": loaded}
        known = loaded.get("model", loaded.get("state_dict", loaded))  # the latter is mmcv's
        model = check_structure({"model": known}, str(file))["model"]
        tensors = {key: torch.as_tensor(value) for key, value in model.items()}
    except UserError:
        raise
    except Exception as error:  # truncated files raise many kinds
        raise CheckpointError(
            f"{file} cannot be read as an official checkpoint: {type(error).__name__}: {error}"
        ) from error
    return tensors, loaded.get("args", Namespace())


def _load(file: Path) -> Any:
    """Reads a file without running code; pickles of Detectron2's zoo hold arrays."""
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    if file.suffix == ".pkl":
        return load_pickle(file)
    check_sums(str(file))
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, map_location="cpu", weights_only=True)


def check_dilation(cfg, trained_with: argparse.Namespace, path: str) -> None:
    """Checks whether C5 or DC5 is meant, which differ in their command line alone.

    Raises:
        CheckpointError: the file and the configuration differ.
    """
    official_dc5 = getattr(trained_with, "dilation", None)
    own_dc5 = cfg.MODEL.BACKBONE.NAME == "build_resnet_dc5_backbone"
    if official_dc5 is not None and bool(official_dc5) != own_dc5:
        raise CheckpointError(
            f"{path} was trained {'with' if official_dc5 else 'without'} DC5, the configuration is "
            "not: choose it with --config-file (..._DC5_... or not)"
        )


def own_shapes(cfg) -> dict[str, tuple[int, ...]]:
    """Lists the keys and shapes of the configuration's model."""
    cfg.MODEL.DEVICE = "cpu"
    return {key: tuple(value.shape) for key, value in build_model(cfg).state_dict().items()}


def check_complete(
    own: dict[str, tuple[int, ...]], converted: dict[str, torch.Tensor], path: str
) -> None:
    """Checks that every tensor of the model is there in its shape.

    Raises:
        CheckpointError: naming the tensors that are not.
    """
    empty = [key for key in own if key not in converted]
    wrong = [
        f"{key} {tuple(value.shape)} instead of {own[key]}"
        for key, value in converted.items()
        if tuple(value.shape) != own[key]
    ]
    if empty or wrong:
        raise CheckpointError(
            f"{path} does not fit the model of the configuration. Empty: {empty[:8]} "
            f"({len(empty)}). Other shape: {wrong[:8]} ({len(wrong)}). Give the model's yaml with "
            "--config-file, and what differs from it as KEY VALUE pairs"
        )
