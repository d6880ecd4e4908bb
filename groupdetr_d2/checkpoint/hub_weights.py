"""Checkpoints of this package made of models of the Hugging Face hub, and kept."""

import argparse
import logging
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import build_config
from ..config.files import config_folder
from ..data.coco_cache import cache_folder
from ..errors import UserError
from .converting import check_complete, convert_tensors, own_shapes, read_official
from .files import CheckpointError, CheckpointWriteError, write_safely
from .fitting import CLASS_ROWS
from .hub import (
    COMMIT,
    CONFIG,
    PREPROCESSOR,
    FolderModel,
    HubModel,
    is_address,
    parse_address,
    read_json,
    weight_files,
)
from .hub_config import Described, describe
from .official import StateDict
from .run_info import RunInfo

logger = logging.getLogger(__name__)
VERSION = 1  # counts changes of what is made of a model
LEFT_OUT = re.compile(r"num_batches_tracked$|^criterion\.")  # no part of a model in evaluation
# types whose files are plain ViTs, which are read as they are
VIT_TYPES = ("vit_mae", "vitdet", "vit")
LAYER_HEADS = re.compile(r"^(head\.predictor\.(?:class_heads|layer_box_heads))\.\d+\.")
FIRST_STAGE = "head.queries.heads.class_head."  # whose row 0 alone is read: is there an object?


def local_file(weights: str | Path) -> str | Path:
    """Returns the file of weights: an address of the hub is fetched and converted, once.

    A plain ViT, which is no detector, is fetched alone: loading gives it its names.

    The checkpoint is kept in $GROUPDETR_CACHE or the user's cache folder; a later call asks the hub
    for the commit alone.

    Raises:
        CheckpointError: the model cannot be had or converted.
        UserError: this is no address, or huggingface_hub is not installed.
    """
    if not is_address(weights):
        return weights
    model = HubModel(parse_address(weights))
    path = kept_file(model)
    if COMMIT.fullmatch(model.commit) and zipfile.is_zipfile(path):
        logger.info("%s: the converted checkpoint is %s", model, path)
        return path
    if (read_json(model, CONFIG) or {}).get("model_type") in VIT_TYPES:
        return backbone_file(model)
    own = path.with_name(f"{os.getpid()}.{path.name}")  # other processes may be at it, too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        said = convert(model, str(own))
        os.replace(own, path)
    except (OSError, CheckpointWriteError) as error:
        raise CheckpointWriteError(
            f"the folder of converted checkpoints {path.parent} cannot be written to ({error}): "
            "choose another with $GROUPDETR_CACHE"
        ) from error
    logger.info("%s, kept in %s", said, path)
    return path


def backbone_file(model: HubModel | FolderModel) -> Path:
    """Returns the file of a backbone that is read as it is.

    Raises:
        CheckpointError: its weights are in several parts.
    """
    files = weight_files(model)
    if len(files) > 1:
        raise CheckpointError(
            f"{model}: its weights are {len(files)} files, and a backbone is read from one: load "
            "it with transformers and save_pretrained(FOLDER, max_shard_size='20GB')"
        )
    return files[0]


def kept_file(model: HubModel) -> Path:
    """Returns the place of the converted checkpoint of a model's commit."""
    name = f"{model.address.repository.replace('/', '--')}@{model.commit.replace('/', '-')[:12]}"
    return cache_folder().parent / "hub" / f"{name}.v{VERSION}.pth"


def convert_described(args: argparse.Namespace) -> None:
    """Converts a model that says itself what it is, a folder or an address; says what was made.

    Raises:
        UserError: the input is neither.
    """
    model: HubModel | FolderModel
    if is_address(args.input):
        model = HubModel(parse_address(args.input))
    elif Path(args.input, CONFIG).is_file():
        model = FolderModel(Path(args.input))
    else:
        raise UserError(
            f"{args.input} does not say which code wrote it: give --source (a folder with a "
            f"{CONFIG} and hf://owner/name need none)"
        )
    said = convert(model, args.output, args.config_file, args.opts)
    sys.stdout.write(f"{said}: {args.output}\n")


def convert(
    model: HubModel | FolderModel, out: str, config_file: str = "", opts: Sequence = ()
) -> str:
    """Writes the checkpoint of a model, which carries its configuration and its class names.

    Args:
        config_file: a yaml in place of the one that fits.
        opts: further overrides.

    Returns:
        a sentence on what was made.

    Raises:
        CheckpointError: files are missing, or they are none of a model that stands here.
    """
    config = read_json(model, CONFIG)
    if config is None:
        raise model.missing(CONFIG)
    described = describe(config, read_json(model, PREPROCESSOR), str(model))
    tensors: StateDict = {}
    for file in weight_files(model):
        tensors |= read_official(str(file))[0]
    default = str(config_folder() / described.config_file)
    cfg = build_config(config_file or default, [*described.opts, *opts])
    converted = filled(cfg, described, tensors, str(model))
    run = RunInfo(cfg).state_dict() | {"classes": described.names, "origin": model.origin}
    try:
        write_safely(out, {"model": converted, "run": run})
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        raise CheckpointWriteError(f"{model}: {out} cannot be written ({error})") from error
    return (
        f"{model}: {len(converted)} tensors of a {cfg.MODEL.DETR.VARIANT}, "
        f"{len(described.names)} classes"
    )


def filled(cfg, described: Described, tensors: StateDict, path: str) -> StateDict:
    """Converts all tensors of a model, and checks that they fill ours.

    Raises:
        CheckpointError: one of theirs has no name here, or one of ours is empty or of another
            shape.
    """
    detr = cfg.MODEL.DETR
    converted, unmapped = convert_tensors(
        described.source, tensors, detr.NUM_OBJECT_QUERIES, described.num_rows, path
    )
    converted = {name: class_rows(name, x, described) for name, x in converted.items()}
    own = own_shapes(cfg)
    converted = with_shared_heads(converted, own)
    unused = [name for name in unmapped if not LEFT_OUT.search(name)]
    unused += [name for name in converted if name not in own]
    if unused:
        raise CheckpointError(
            f"{path} has {len(unused)} tensors that have no place here, {', '.join(unused[:5])}: "
            "the model is not the one that its configuration describes"
        )
    check_complete(own, converted, path)
    return converted


def with_shared_heads(converted: StateDict, names: Iterable[str]) -> StateDict:
    """Adds the heads of later layers that a file leaves out, since they are the first layer's.

    Args:
        names: of the tensors that the model has.
    """
    firsts = {name: LAYER_HEADS.sub(r"\1.0.", name) for name in names if name not in converted}
    shared = {name: converted[x].clone() for name, x in firsts.items() if x in converted}
    return converted | shared


def class_rows(name: str, value: Tensor, described: Described) -> Tensor:
    """Takes the rows of classes out of a class head, and that of "no object" if it has one."""
    axis = next((axis for pattern, axis in CLASS_ROWS if pattern.search(name)), None)
    if axis is None or value.shape[axis] not in (described.num_rows, described.num_rows + 1):
        return value
    if name.startswith(FIRST_STAGE):
        return value.narrow(axis, 0, len(described.rows)).clone()
    rest = range(described.num_rows, value.shape[axis])
    return value.index_select(axis, torch.tensor([*described.rows, *rest]))
