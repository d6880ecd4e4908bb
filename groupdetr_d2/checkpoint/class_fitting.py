"""Checkpoints for other classes, whose rows are those of classes of another data set."""

import json
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn

from .files import CheckpointError, write_safely
from .fitting import are_known, fit_state_dict
from .hub_weights import local_file
from .objects365_to_coco import SOURCES, coco_rows
from .restoring import config_of, read_checkpoint
from .structure import check_filled, used_tensors

OBJECTS365_TO_COCO = "objects365-to-coco"
COCO_SETS = (("coco_2017_train",), ("coco_2017_val",))
FORM = (
    'has to be an object such as {"bicycle": "Bicycle", "unicorn": null}: a new class, and the '
    "class of the checkpoint whose rows it takes, or null for none"
)


def fit_file(weights: str, out: str, classes: str) -> str:
    """Writes a checkpoint for other classes.

    The rows of class heads, of the first stages of all groups and of label embeddings are those of
    the classes that stand for the new ones; everything else stays. It holds the running mean of
    weights (MODEL.EMA) if there is one, and no optimizer.

    Args:
        weights: a checkpoint of this package, or hf://owner/name.
        classes: "objects365-to-coco", or a JSON file with the checkpoint's class, or null, by the
            name of each new class.

    Returns:
        the table of rows.

    Raises:
        CheckpointError: the checkpoint cannot be used, or does not know one of the classes.
    """
    weights = str(local_file(weights))
    content = read_checkpoint(weights)
    old = content["run"]["classes"]
    chosen = _chosen_rows(classes, old, weights)
    cfg = _config_of_new(config_of(content, weights), len(chosen), classes)
    model = build_model(cfg)
    state = {name: torch.as_tensor(x) for name, x in used_tensors(content).items()}
    changed = fit_state_dict(state, model, old, list(chosen), list(chosen.values()))
    if not changed:
        raise CheckpointError(
            f"{weights}: no tensor with a row for each of its {len(old)} classes was found, and "
            "nothing could be fitted"
        )
    _load(model, state, weights)
    kept = {key: content["run"][key] for key in ("stripped", "origin") if key in content["run"]}
    run = {"config": cfg.dump(), "classes": list(chosen), **kept}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_safely(out, {"model": model.state_dict(), "run": run})
    table = _table(chosen, old, has_likeness=classes == OBJECTS365_TO_COCO)
    return table + _summary(model, changed, chosen, out)


def _chosen_rows(classes: str, old: list[str], weights: str) -> dict[str, int | None]:
    """Returns the checkpoint's row, or None, by the name of each new class."""
    if not are_known(old):
        raise CheckpointError(f"{weights} has numbers for class names: nothing tells them apart")
    if classes != OBJECTS365_TO_COCO:
        return _rows_of_file(classes, old, weights)
    rows = coco_rows(old)
    if not rows:
        raise CheckpointError(
            f"{weights} is no model of Objects365 v2: it has {len(old)} classes, which begin with "
            f"{', '.join(old[:5])}, and not 365 that begin with Person, Sneakers, Chair, Other "
            "Shoes. For other classes name a JSON file: --classes FILE.json"
        )
    return dict(rows)


def _rows_of_file(path: str, old: list[str], weights: str) -> dict[str, int | None]:
    if not Path(path).is_file():
        raise CheckpointError(
            f"--classes {path} is neither {OBJECTS365_TO_COCO} nor a file. A file {FORM}"
        )
    try:
        wanted = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}). It {FORM}") from error
    is_right = isinstance(wanted, dict) and all(
        name.strip() and (x is None or isinstance(x, str)) for name, x in wanted.items()
    )
    if not is_right or not wanted:
        raise CheckpointError(f"{path} {FORM}")
    places = {name.strip().lower(): i for i, name in reversed(list(enumerate(old)))}
    unknown = [x for x in wanted.values() if x and x.strip().lower() not in places]
    if unknown:
        raise CheckpointError(
            f"{path}: {weights} has no classes {', '.join(unknown[:5])}; it has "
            f"{', '.join(old[:20])}{' ...' if len(old) > 20 else ''}"
        )
    return {new: places[x.strip().lower()] if x else None for new, x in wanted.items()}


def _config_of_new(cfg: CfgNode, num_classes: int, classes: str) -> CfgNode:
    """The configuration of the checkpoint's model with other classes, on the CPU."""
    cfg.MODEL.DETR.NUM_CLASSES = num_classes
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.MODEL.EMA.ENABLED = "", "cpu", False
    is_coco = classes == OBJECTS365_TO_COCO
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = COCO_SETS if is_coco else ((), ())
    return cfg


def _load(model: nn.Module, state: dict, path: str) -> None:
    """Loads tensors, of which none may be missing, have another shape or be not finite."""
    own = model.state_dict()
    states = {name: _state(state.get(name), x) for name, x in own.items()}
    check_filled(states, {name: x for name, x in state.items() if name in own}, path)
    model.load_state_dict({name: state[name] for name in own})


def _state(found: Tensor | None, own: Tensor) -> str:
    if found is None:
        return "missing"
    return "loaded" if found.shape == own.shape else "re-initialised"


def _table(chosen: dict[str, int | None], old: list[str], *, has_likeness: bool) -> str:
    """Shows which rows the classes take, and how like the two classes are."""
    lines = []
    for new, row in chosen.items():
        likeness = SOURCES[new].likeness if has_likeness else ""
        found = ("(new)", "", "") if row is None else (old[row].strip(), row, likeness)
        lines.append((new, *found))
    return tabulate(lines, headers=("class", "takes the rows of", "row", ""), tablefmt="simple")


def _summary(model: nn.Module, changed: list[str], chosen: dict, out: str) -> str:
    own = model.state_dict()
    tensors = "\n".join(f"  {name} {tuple(own[name].shape)}" for name in changed)
    return f"\n\n{out}: {len(chosen)} classes; rows were taken in\n{tensors}\n"
