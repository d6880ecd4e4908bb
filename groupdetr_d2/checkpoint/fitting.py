"""Makes a state dict fit a model of other groups, queries or classes."""

import logging
import re
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..groups import QueryGroups, resize_query_bank
from ..layers.per_group import PerGroup
from ..modeling.queries import QueryBank
from ..modeling.two_stage import TwoStageQueries

logger = logging.getLogger(__name__)
NOISE = 0.02  # relative to the bank's spread; copies of a query would otherwise train alike
# tensors with a row for each class, and its axis; some have one more, which is the last one: for
# "unknown" in the label embedding, for "no object" in Mask2Former's head
CLASS_ROWS = (
    (re.compile(r"predictor\.class_heads\.\d+\.(weight|bias)$"), 0),
    (re.compile(r"denoising\.label_embedding\.weight$"), 0),
    (re.compile(r"queries\.heads\.class_head\.(weight|bias)$"), 1),
)


def fit_state_dict(
    state_dict: dict[str, Tensor],
    model: nn.Module,
    old_classes: Sequence[str] | None = None,
    new_classes: Sequence[str] | None = None,
) -> list[str]:
    """Resizes banks and tensors stacked by group, and sorts the rows of classes, in place.

    Args:
        old_classes: names of the checkpoint's classes, if they are known.
        new_classes: those of the model.

    Returns:
        the names of the tensors that are no longer those of the checkpoint.
    """
    changed = []
    for name, module in model.named_modules():
        if isinstance(module, QueryBank):
            changed += _fit_bank(state_dict, name, module)
        elif isinstance(module, PerGroup):
            changed += _fit_parts(state_dict, name, module)
    if are_known(old_classes) and are_known(new_classes) and list(old_classes) != list(new_classes):
        changed += _fit_classes(state_dict, model, list(old_classes), list(new_classes))
    return changed


def unmatched_classes(
    old_classes: Sequence[str] | None, new_classes: Sequence[str] | None
) -> list[str]:
    """The classes of a model whose rows are in no checkpoint with those other classes."""
    if not are_known(old_classes) or not are_known(new_classes):
        return []
    known = {name.strip().lower() for name in old_classes}
    return [name for name in new_classes if name.strip().lower() not in known]


def are_known(classes: Sequence[str] | None) -> TypeGuard[Sequence[str]]:
    """Whether these are names; a data set without names has numbers instead."""
    if not classes:
        return False
    return list(classes) != [str(i) for i in range(len(classes))]


def _fit_classes(
    state_dict: dict[str, Tensor], model: nn.Module, old: list[str], new: list[str]
) -> list[str]:
    """Puts the rows of classes that both sides know by name in the model's order.

    The others keep the model's own initial values.
    """
    index = {name.strip().lower(): i for i, name in reversed(list(enumerate(old)))}
    rows = [index.get(name.strip().lower()) for name in new]
    pairs = [(i, row) for i, row in enumerate(rows) if row is not None]
    without = [name for name, row in zip(new, rows, strict=True) if row is None]
    changed, own = [], model.state_dict()
    for name, value in list(state_dict.items()):
        axis = next((axis for pattern, axis in CLASS_ROWS if pattern.search(name)), None)
        if axis is None or name not in own or _is_objectness(model, name):
            continue
        has_more = (value.shape[axis], own[name].shape[axis]) == (len(old) + 1, len(new) + 1)
        taken = [*pairs, (len(new), len(old))] if has_more else pairs
        state_dict[name] = _rows_by_name(own[name].cpu(), torch.as_tensor(value), axis, taken)
        changed.append(name)
    logger.warning(
        "classes: the checkpoint has %d, the model %d; rows of %d are matched by name%s",
        len(old),
        len(new),
        len(pairs),
        f", new are {', '.join(without[:20])}" if without else "",
    )
    return changed


def _rows_by_name(own: Tensor, value: Tensor, axis: int, pairs: list[tuple[int, int]]) -> Tensor:
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
