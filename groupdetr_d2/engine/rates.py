"""The learning rate and the weight decay of each parameter.

A rate is SOLVER.BASE_LR times factors that depend on the parameter's name: one for the backbone,
one for the depth of a block of a ViT (ViTDet), one for the component of the detector (LW-DETR).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm
from tabulate import tabulate
from torch import nn

from ..errors import UserError
from ..layers.per_group import GroupLayerNorm
from ..modeling.queries import QueryBank

NORMS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, GroupLayerNorm),
    LayerNorm,  # Detectron2's, of channels, in ViTDet's pyramid
)
EMBEDDINGS = (nn.Embedding, QueryBank)
# the ViT of this package, or one of transformers or timm
VIT = r"backbone\.(?:net\.)?(?:model\.(?:[a-z_]+\.)*)?"
BLOCK = re.compile(VIT + r"(?:blocks|layers?)\.(\d+)\.(?!\d)")
STAGE = re.compile(VIT + r"(?:blocks|layers?)\.\d+\.blocks?\.")
EMBEDDED = re.compile(VIT + r"(?:pos_embed$|patch_embed\.|embeddings\.|(?:cls|reg)_token$)")
# kinds of parameters that SOLVER.NO_DECAY can name, besides "norm" and "embedding": the last part
# of their names
NAMED_KINDS = {
    "bias": re.compile(r"bias$"),
    "position": re.compile(r"(pos_embed|position_embeddings|rel_pos_[hw]|level_embedding)$"),
    "layer_scale": re.compile(r"(gamma_[12]|lambda_?[12]|ls[12]\.gamma)$"),
}


@dataclass(frozen=True)
class Rate:
    """The learning rate and the weight decay of a parameter.

    Attributes:
        is_slow: whether it belongs to the backbone or to SOLVER.SLOW_NAMES.
        lr: learning rate at the base of the schedule.
        weight_decay: weight decay.
    """

    is_slow: bool
    lr: float
    weight_decay: float


def rates_of(cfg: CfgNode, model: nn.Module) -> dict[str, Rate]:
    """Computes the rates of all trained parameters, by name.

    Raises:
        UserError: a key of SOLVER names something that the model does not have.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _check(cfg, list(trained))
    slow_names = ("backbone.", *cfg.SOLVER.SLOW_NAMES)
    decays, depth = decays_of(cfg, model), depth_of(list(trained))
    powers = dict(zip(cfg.SOLVER.COMPONENTS, cfg.SOLVER.COMPONENT_POWERS, strict=True))
    rates = {}
    for name in trained:
        is_slow = any(x in name for x in slow_names)
        lr = cfg.SOLVER.BASE_LR
        lr *= cfg.SOLVER.BACKBONE_MULTIPLIER if is_slow else 1.0
        lr *= layer_factor(name, depth, cfg.SOLVER.LAYER_DECAY)
        lr *= cfg.SOLVER.COMPONENT_DECAY ** power_of(name, powers)
        rates[name] = Rate(is_slow, lr, decays.get(name, cfg.SOLVER.WEIGHT_DECAY))
    return rates


def depth_of(names: list[str]) -> int:
    """The number of blocks of the ViT that parameters belong to; 0 without one.

    Blocks in stages, as in Swin, are those of no ViT.
    """
    if any(map(STAGE.match, names)):
        return 0
    blocks = [int(match[1]) for match in map(BLOCK.match, names) if match]
    return max(blocks, default=-1) + 1


def layer_factor(name: str, depth: int, decay: float) -> float:
    """The factor of a parameter's rate for its depth in a ViT.

    The last block has `decay`, each one below the factor of the one above times `decay`, and the
    embeddings of patches and positions one power more than the first block. All else has 1.

    Args:
        name: the parameter's name in the model.
        depth: number of blocks of the ViT.
        decay: SOLVER.LAYER_DECAY.
    """
    if not depth:
        return 1.0
    block = BLOCK.match(name)
    if block:
        return decay ** (depth - int(block[1]))
    return decay ** (depth + 1) if EMBEDDED.match(name) else 1.0


def power_of(name: str, powers: dict[str, float]) -> float:
    """The power of SOLVER.COMPONENT_DECAY of a parameter's component, 0 if it is of none.

    Args:
        powers: the power by the beginning of a name; the first that fits counts.
    """
    return next((power for begin, power in powers.items() if name.startswith(begin)), 0)


def decays_of(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """The weight decay of parameters, by name, where it is another than that of the rest."""
    solver = cfg.SOLVER
    decays: dict[str, float] = {}
    for name, kinds in kinds_of(model):
        if solver.WEIGHT_DECAY_EMBED is not None:
            decays |= {name: solver.WEIGHT_DECAY_NORM} if "norm" in kinds else {}
            decays |= {name: solver.WEIGHT_DECAY_EMBED} if "embedding" in kinds else {}
        if kinds & set(solver.NO_DECAY) and name.startswith(solver.NO_DECAY_IN):
            decays[name] = 0.0
    return decays


def kinds_of(model: nn.Module) -> Iterator[tuple[str, set[str]]]:
    """Yields the name of every parameter with the kinds that it is of."""
    for prefix, module in model.named_modules():
        kinds = {"norm"} if isinstance(module, NORMS) else set()
        kinds |= {"embedding"} if isinstance(module, EMBEDDINGS) else set()
        for name, _ in module.named_parameters(recurse=False):
            named = {kind for kind, end in NAMED_KINDS.items() if end.search(name)}
            yield f"{prefix}.{name}" if prefix else name, kinds | named


def _check(cfg: CfgNode, names: list[str]) -> None:
    solver = cfg.SOLVER
    for slow in solver.SLOW_NAMES:
        if not any(slow in name for name in names):
            raise UserError(f"SOLVER.SLOW_NAMES has {slow!r}, which is in no parameter's name")
    if solver.LAYER_DECAY != 1 and not depth_of(names):
        raise UserError(
            f"SOLVER.LAYER_DECAY {solver.LAYER_DECAY:g} is for a ViT that is trained, which "
            f"{cfg.MODEL.BACKBONE.NAME} has not: give SOLVER.LAYER_DECAY 1.0"
        )
    if solver.NO_DECAY_IN and not any(name.startswith(solver.NO_DECAY_IN) for name in names):
        raise UserError(f"SOLVER.NO_DECAY_IN is {solver.NO_DECAY_IN!r}: no parameter begins so")
    if len(solver.COMPONENTS) != len(solver.COMPONENT_POWERS):
        raise UserError(
            f"SOLVER.COMPONENTS has {len(solver.COMPONENTS)} beginnings of names and "
            f"SOLVER.COMPONENT_POWERS {len(solver.COMPONENT_POWERS)} numbers: each needs one"
        )
    unknown = set(solver.NO_DECAY) - {"norm", "embedding", *NAMED_KINDS}
    if unknown:
        raise UserError(
            f"SOLVER.NO_DECAY has {sorted(unknown)[0]!r}; it takes norm, embedding, "
            f"{', '.join(NAMED_KINDS)}"
        )


def rate_table(cfg: CfgNode, model: nn.Module) -> str:
    """Writes the rates as a table: component or block, rate, weight decay, millions of parameters.

    Parameters that are not trained have a line with the rate 0.
    """
    rates, numbers = rates_of(cfg, model), dict[tuple[str, float, float], int]()
    for name, parameter in model.named_parameters():
        rate = rates.get(name, Rate(False, 0.0, 0.0))
        key = (label_of(name), rate.lr, rate.weight_decay)
        numbers[key] = numbers.get(key, 0) + parameter.numel()
    rows = [(*key, number / 1e6) for key, number in numbers.items()]
    headers = ("parameters of", "learning rate", "weight decay", "M")
    formats = ("", ".3g", "g", ".3f")
    return tabulate(rows, headers, tablefmt="simple", floatfmt=formats)


def label_of(name: str) -> str:
    """The line of the table that a parameter is counted in."""
    block = BLOCK.match(name)
    if block:
        return f"backbone, block {block[1]}"
    if EMBEDDED.match(name):
        return "backbone, embeddings"
    first, second, *_ = name.split(".")
    if first == "head":
        return f"head.{second}"
    return "backbone, pyramid" if second.startswith("simfp") else "backbone"
