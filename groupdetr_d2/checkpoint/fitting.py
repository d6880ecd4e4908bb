"""Makes a state dict fit a model of other groups, queries, classes or positions."""

import logging
import re
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ..distributed import whole
from ..errors import UserError
from ..groups import QueryGroups, resize_query_bank
from ..layers.per_group import PerGroup
from ..modeling.queries import QueryBank
from ..modeling.two_stage import TwoStageQueries
from ..modeling.vit import ViT
from .objects365_to_coco import coco_rows
from .vit_files import fit_vit

logger = logging.getLogger(__name__)
NOISE = 0.02  # relative to the bank's spread; copies of a query would otherwise train alike
# tensors with a row for each class, and its axis; some have one more, which is the last one: for
# "unknown" in the label embedding, for "no object" in Mask2Former's head; in PETR's heads it is the
# last layer, number 6, that has them
CLASS_ROWS = (
    (re.compile(r"predictor\.class_heads\.\d+\.(6\.)?(weight|bias)$"), 0),
    (re.compile(r"denoising\.label_embedding\.weight$"), 0),
    (re.compile(r"queries\.heads\.class_head\.(weight|bias)$"), 1),
)


def fit_state_dict(
    state_dict: dict[str, Tensor],
    model: nn.Module,
    old_classes: Sequence[str] | None = None,
    new_classes: Sequence[str] | None = None,
    rows: Sequence[int | None] | None = None,
) -> list[str]:
    """Resizes banks, tensors stacked by group and those of a ViT, and sorts rows of classes.

    The state dict is changed in place.

    Args:
        old_classes: names of the checkpoint's classes, if they are known.
        new_classes: those of the model.
        rows: the checkpoint's row of each of the model's classes, None for a new one; those of
            :func:`rows_of_classes` if not given.

    Returns:
        the names of the tensors that are no longer those of the checkpoint.
    """
    changed = []
    for name, module in model.named_modules():
        if isinstance(module, QueryBank):
            changed += _fit_bank(state_dict, name, module)
        elif isinstance(module, PerGroup):
            changed += _fit_parts(state_dict, name, module)
        elif isinstance(module, ViT):
            changed += fit_vit(state_dict, f"{name}.", module)
    if are_known(old_classes) and are_known(new_classes):
        if rows is not None or list(old_classes) != list(new_classes):
            changed += _fit_classes(state_dict, model, old_classes, new_classes, rows)
    return changed


def rows_of_classes(old_classes: Sequence[str], new_classes: Sequence[str]) -> list[int | None]:
    """Finds the checkpoint's row of each class of a model; None for a class that it lacks.

    Rows are found by name. COCO's classes take those of Objects365 by `objects365_to_coco`'s
    table.
    """
    names = [name.strip().lower() for name in old_classes]
    index = {name: i for i, name in reversed(list(enumerate(names)))} | coco_rows(old_classes)
    return [index.get(name.strip().lower()) for name in new_classes]


def unmatched_classes(
    old_classes: Sequence[str] | None, new_classes: Sequence[str] | None
) -> list[str]:
    """The classes of a model whose rows are in no checkpoint with those other classes."""
    if not are_known(old_classes) or not are_known(new_classes):
        return []
    rows = rows_of_classes(old_classes, new_classes)
    return [name for name, row in zip(new_classes, rows, strict=True) if row is None]


def are_known(classes: Sequence[str] | None) -> TypeGuard[Sequence[str]]:
    """Whether these are names; a data set without names has numbers instead."""
    if not classes:
        return False
    return list(classes) != [str(i) for i in range(len(classes))]


def _fit_classes(
    state_dict: dict[str, Tensor],
    model: nn.Module,
    old: Sequence[str],
    new: Sequence[str],
    rows: Sequence[int | None] | None,
) -> list[str]:
    """Puts the rows of classes in the model's order; new ones keep its own initial values.

    Args:
        rows: see :func:`fit_state_dict`.
    """
    how = "the table of Objects365 and COCO" if coco_rows(old) else "name"
    how = how if rows is None else "the given table"
    rows = rows_of_classes(old, new) if rows is None else rows
    pairs = [(i, row) for i, row in enumerate(rows) if row is not None]
    changed, own = [], model.state_dict()
    for name, value in list(state_dict.items()):
        axis = next((axis for pattern, axis in CLASS_ROWS if pattern.search(name)), None)
        if axis is None or name not in own or not _has_rows(value, own[name], axis, len(old)):
            continue
        taken = pairs
        if (value.shape[axis], own[name].shape[axis]) == (len(old) + 1, len(new) + 1):
            taken = [*pairs, (len(new), len(old))]
        elif _is_objectness(model, name):
            if len(old) == len(new):
                continue
            taken = [(0, 0)]  # the others are never read
        current = whole(own[name]).cpu()
        state_dict[name] = _with_rows(current, torch.as_tensor(value), axis, taken)
        changed.append(name)
    without = [name for name, row in zip(new, rows, strict=True) if row is None]
    logger.warning(
        "classes: the checkpoint has %d, the model %d; rows of %d are matched by %s%s",
        len(old),
        len(new),
        len(pairs),
        how,
        f", new are {', '.join(without[:20])}" if without else "",
    )
    return changed


def _has_rows(value: Tensor, own: Tensor, axis: int, number: int) -> bool:
    """Whether a tensor differs from the model's in the number of rows alone, and has as many."""
    if not axis < value.ndim == own.ndim or value.shape[axis] < number:
        return False
    pairs = enumerate(zip(value.shape, own.shape, strict=True))
    return all(place == axis or theirs == ours for place, (theirs, ours) in pairs)


def _with_rows(own: Tensor, value: Tensor, axis: int, pairs: list[tuple[int, int]]) -> Tensor:
    """Copies `own`, with the rows that `pairs` (new, old) takes from `value`."""
    result = own.clone()
    if pairs:
        new, old = torch.tensor(pairs).unbind(1)
        result.index_copy_(axis, new, value.index_select(axis, old).to(result.dtype))
    return result


def _is_objectness(model: nn.Module, name: str) -> bool:
    """Whether the rows belong to a first stage in which class 0 stands for any object."""
    return any(
        isinstance(module, TwoStageQueries) and module.class_agnostic and name.startswith(prefix)
        for prefix, module in model.named_modules()
    )


def _fit_bank(state_dict: dict[str, Tensor], name: str, bank: QueryBank) -> list[str]:
    """Resizes a bank of other K or N to the model's; returns the names of resized tensors."""
    weight, shape = state_dict.get(f"{name}.weight"), state_dict.get(f"{name}.shape")
    if weight is None or shape is None or tuple(shape.shape) != (2,) or weight.ndim != 2:
        return []
    num_groups, num_queries = torch.as_tensor(shape).tolist()
    try:
        old = QueryGroups(num_queries, num_groups)
    except UserError:
        return []
    if len(weight) != old.bank_size:
        return []
    new = QueryGroups(bank.groups.num_queries, bank.groups.num_groups)
    if old == new:
        return []
    logger.warning(
        "%s: the checkpoint has K = %d groups of N = %d queries, the model K = %d of N = %d: "
        "resized group by group (the first queries of each group are kept, missing ones are copies "
        "with a little noise)",
        name,
        old.num_groups,
        old.num_queries,
        new.num_groups,
        new.num_queries,
    )
    state_dict[f"{name}.weight"] = _resize(torch.as_tensor(weight), old, new)
    state_dict[f"{name}.shape"] = bank.shape.cpu().clone()
    return [f"{name}.weight"]


def _fit_parts(state_dict: dict[str, Tensor], name: str, module: PerGroup) -> list[str]:
    """Resizes tensors that are stacked by group; returns their names."""
    changed = []
    for own, parameter in module.named_parameters(f"{name}", recurse=False):
        found = state_dict.get(own)
        if found is None or len(found) == len(parameter):
            continue
        old, new = QueryGroups(1, len(found)), QueryGroups(1, len(parameter))
        logger.warning("%s: resized from K = %d to K = %d groups", own, len(found), len(parameter))
        state_dict[own] = _resize(torch.as_tensor(found), old, new)
        changed.append(own)
    return changed


def _resize(weight: Tensor, old: QueryGroups, new: QueryGroups) -> Tensor:
    """Keeps rows, or copies them with a little noise."""
    resized = resize_query_bank(weight, old, new)
    kept = resize_query_bank(torch.arange(len(weight)), old, new)  # which old row each one is
    is_copy = ~_first_occurrences(kept)
    noise = torch.randn(resized.shape, generator=torch.Generator().manual_seed(0))
    resized[is_copy] += NOISE * weight.std() * noise[is_copy].to(resized.dtype)
    return resized


def _first_occurrences(values: Tensor) -> Tensor:
    seen: set[int] = set()
    is_first = []
    for value in values.tolist():
        is_first.append(value not in seen)
        seen.add(value)
    return torch.tensor(is_first)
