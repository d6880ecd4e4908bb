"""The report on a checkpoint's tensors: nothing starts from random weights in silence."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tabulate import tabulate
from torch import Tensor, nn

logger = logging.getLogger(__name__)
STATES = ("loaded", "resized", "re-initialised", "missing")
SHOWN = 12


def report_loading(
    states: dict[str, str],
    unused: list[str],
    left_out: Sequence[str] = (),
    model: nn.Module | None = None,
) -> None:
    """Logs a table by part of the model, with a warning if backbone or transformer are random.

    Args:
        states: the state of every tensor, see :func:`states_of`.
        unused: tensors of the checkpoint that the model does not have.
        left_out: tensors that a file of a backbone has beside it, such as a decoder's.
        model: has the values that tensors start from.
    """
    count = Counter((part_of(name), state) for name, state in states.items())
    parts = dict.fromkeys(map(part_of, states))
    rows = [(part, *(count[part, state] or "" for state in STATES)) for part in parts]
    table = tabulate(rows, headers=("tensors of", *STATES), tablefmt="simple")
    rest = f"\nnot used: {len(unused)} of the checkpoint's, {_some(unused)}" if unused else ""
    if left_out:
        rest += f"\nleft out, which is no part of a backbone: {kinds_of(left_out)}"
    is_complete = set(states.values()) == {"loaded"} and not rest
    if is_complete:
        logger.info("all %d tensors loaded", len(states))
    else:
        logger.info("loaded from the checkpoint:\n%s%s", table, rest)
    _warn(states, unused)
    _warn_of_backbone(states, model)


def states_of(model: nn.Module, incompatible, changed: list[str]) -> dict[str, str]:
    """Finds the state, one of STATES, of every tensor of the model.

    Args:
        incompatible: fvcore's, of `load_state_dict`.
        changed: tensors whose size or order of classes was made to fit.
    """
    other_shape = {key for key, *_ in incompatible.incorrect_shapes}
    missing, resized = set(incompatible.missing_keys), set(changed)

    def state(name: str) -> str:
        if name in other_shape:
            return "re-initialised"
        return "missing" if name in missing else "resized" if name in resized else "loaded"

    return {name: state(name) for name in model.state_dict()}


def part_of(name: str) -> str:
    """The part of the model that a tensor is counted with."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first == "head" and rest else first


def _warn(states: dict[str, str], unused: list[str]) -> None:
    fitting = {part_of(name) for name, state in states.items() if state in ("loaded", "resized")}
    if "backbone" not in fitting and any(part_of(name) == "backbone" for name in states):
        logger.warning("NOTHING of the checkpoint fits backbone.*: it starts from random weights")
    if not any(part.startswith("head.") for part in fitting):
        had_one = not all(name.startswith(("backbone.", "stem.", "res")) for name in unused)
        logger.warning(
            "NOTHING of the checkpoint fits head.*: the transformer starts from random weights, %s",
            "though the checkpoint has more than a backbone: are its names converted?"
            if unused and had_one
            else "as it should with a backbone's checkpoint",
        )
        return
    new = [name for name, state in states.items() if state in ("missing", "re-initialised")]
    if new:
        logger.warning("%d tensors start from random weights: %s", len(new), _some(new))


def _warn_of_backbone(states: dict[str, str], model: nn.Module | None) -> None:
    """Says which kinds of tensors a backbone that is loaded in part does not find, and their start.

    One that is random as a whole, or loaded as a whole, is not spoken of.
    """
    own = {name: state for name, state in states.items() if part_of(name) == "backbone"}
    new = [name for name, state in own.items() if state not in ("loaded", "resized")]
    if not new or len(new) == len(own):
        return
    logger.warning(
        "%d tensors of the backbone are not those of the checkpoint: %s",
        len(new),
        kinds_of(new, None if model is None else model.state_dict()),
    )


def kinds_of(names: Iterable[str], values: dict[str, Tensor] | None = None) -> str:
    """Lists names by kind, with * for every number, and how the tensors of each kind start."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    parts = []
    for kind, members in kinds.items():
        start = "" if values is None else f", {_start([values[name] for name in members])}"
        parts.append(f"{kind} ({len(members)}{start})")
    return ", ".join(parts)


def _start(values: list[Tensor]) -> str:
    """Says what tensors start from: one number, or random ones."""
    found = {float(x.flatten()[0]) for x in values if len(x.unique()) == 1}
    is_constant = len(found) == 1 and all(len(x.unique()) == 1 for x in values)
    return f"all {found.pop():g}" if is_constant else "random"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
