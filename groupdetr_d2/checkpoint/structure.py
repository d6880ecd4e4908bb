"""The structure of a checkpoint: what a file may hold, before anything is made of it."""

from typing import Any

import numpy as np
import torch
import yaml

from .files import CheckpointError, UnreadableCheckpointError

SHOWN = 5
# keys of MODEL.DETR that are a number of rows, queries or channels of some tensor
DIMENSIONS = ("NUM_GROUPS", "NUM_OBJECT_QUERIES", "NUM_CLASSES", "HIDDEN_DIM", "DIM_FEEDFORWARD")
LAYERS = ("ENC_LAYERS", "DEC_LAYERS")
FILLED = ("loaded", "resized")  # states of tensors that are not random


def check_structure(content: Any, path: str) -> dict:
    """Checks that a file holds tensors by name, and if it says so a configuration and classes.

    Args:
        content: with "model", and "run" if a training of this package wrote it.

    Raises:
        UnreadableCheckpointError: naming the file and what is wrong.
    """
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise _wrong(path, f"it holds a {type(content).__name__}, not tensors by their names")
    _check_tensors(model, path)
    if "mean_weights" in content:
        mean = content["mean_weights"]
        own = mean.get("model") if isinstance(mean, dict) else None
        if not isinstance(own, dict):
            raise _wrong(path, "its running mean (MODEL.EMA) has no tensors by their names")
        _check_tensors(own, path)
    if "run" in content:
        _check_run(content["run"], path)
    return content


def _check_tensors(model: dict, path: str) -> None:
    for name, value in model.items():
        if not isinstance(name, str):
            raise _wrong(path, f"its tensors have names such as {name!r}")
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise _wrong(path, f"{name} is a {type(value).__name__}, not a tensor")


def used_tensors(content: dict) -> dict:
    """The tensors that a model which is to be used gets: the running mean, if there is one."""
    return content.get("mean_weights", content)["model"]


def _check_run(run: Any, path: str) -> None:
    if not isinstance(run, dict) or not isinstance(run.get("config", ""), str):
        raise _wrong(path, "its configuration is no text")
    classes = run.get("classes")
    if not isinstance(classes, list) or not all(isinstance(x, str) for x in classes):
        raise _wrong(path, "its class names are no list of texts")
    threshold = run.get("threshold", 0.5)
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise _wrong(path, f"its threshold is {threshold!r}, not a number from 0 to 1")


def _wrong(path: str, what: str) -> UnreadableCheckpointError:
    return UnreadableCheckpointError(
        f"{path} is no checkpoint that can be used: {what}. It may be damaged, or another "
        "project's: `python -m groupdetr_d2 convert` reads official ones"
    )


def config_text(content: dict, path: str) -> dict:
    """Reads the configuration that a checkpoint carries.

    Raises:
        CheckpointError: it is no configuration.
    """
    try:
        nested = yaml.safe_load(content["run"]["config"])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _wrong(path, f"its configuration is no plain yaml ({error})") from error
    is_ours = isinstance(nested, dict) and isinstance(nested.get("MODEL"), dict)
    detr = nested["MODEL"].get("DETR") if is_ours else None
    if not isinstance(detr, dict) or not isinstance(detr.get("DENOISING", {}), dict):
        raise _wrong(path, "its configuration is not of a model of this package")
    if "_BASE_" in nested:
        raise _wrong(path, "its configuration is based on another file")
    return nested


def check_sizes(nested: dict, model: dict, path: str) -> None:
    """Compares the numbers of a configuration with the tensors that belong to it.

    Nothing has to be built to see that a file of a few kilobytes does not hold a billion queries.

    Raises:
        CheckpointError: naming the file, the key and the largest number that the tensors allow.
    """
    if not model:
        raise CheckpointError(f"{path} has no tensors: its model would be random")
    detr = nested["MODEL"]["DETR"]
    largest = max((max(x.shape, default=0) for x in model.values()), default=0)
    limits = dict.fromkeys(DIMENSIONS, largest) | dict.fromkeys(LAYERS, len(model))
    if not any("bank" in name for name in model):
        del limits["NUM_OBJECT_QUERIES"]  # queries that are computed are in no tensor
    for key, limit in limits.items():
        value = detr.get(key, 0)
        if not isinstance(value, int) or value > max(limit, 1):
            raise CheckpointError(
                f"{path}: its configuration has MODEL.DETR.{key} {value!r}, and its {len(model)} "
                f"tensors have room for {limit} at most"
            )


def check_filled(states: dict[str, str], model: dict, path: str) -> None:
    """Checks that a model that is to be used got all its tensors, and finite ones.

    Args:
        states: the state of every tensor, see `loading_report.states_of`.
        model: the state dict of the model.

    Raises:
        CheckpointError: naming the file and the first tensors that are missing, do not fit or are
            not finite.
    """
    lacking = [f"{name} ({state})" for name, state in states.items() if state not in FILLED]
    if lacking:
        raise CheckpointError(
            f"{path} does not fill the model: {len(lacking)} of {len(states)} tensors are missing "
            f"or have another shape, {_some(lacking)}. They would be random"
        )
    wrong = [name for name, x in model.items() if x.is_floating_point() and not x.isfinite().all()]
    if wrong:
        raise CheckpointError(
            f"{path} cannot be used: {len(wrong)} tensors are NaN or infinite, {_some(wrong)}. "
            "Take an earlier checkpoint"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
