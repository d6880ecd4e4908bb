"""The keys that take one of several words, and the words: the one place that knows them."""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..errors import UserError
from ..registry import VARIANT_REGISTRY

Words = tuple[str, ...]
FIRST_STAGES = {"deformable_detr": ("", "objectness"), "dab_deformable_detr": ("", "pure")}

# of variants that detect no 2D boxes
ARCHITECTURES = {"mask2former": "GroupMask2Former", "petr": "GroupPETR", "petrv2": "GroupPETR"}


class ChoiceError(UserError):
    """A key has a value that is none of its words; the message lists them."""


def check_device(key: str, device: str) -> None:
    """Checks that a device is one of this machine: torch's own errors come late.

    Raises:
        ChoiceError: naming the key or argument, and what it can be.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ChoiceError(f"{key} is {device!r}; it can be cpu, cuda, cuda:1 and so on") from error
    number = torch.cuda.device_count()
    if wanted.type == "cuda" and not number:
        raise ChoiceError(f"{key} is {device!r}, and PyTorch finds no GPU here; it can be cpu")
    if wanted.type == "cuda" and (wanted.index or 0) >= number:
        raise ChoiceError(f"{key} is {device!r}, and there are {number} GPUs, counted from 0")


def _variants(cfg: CfgNode) -> Words:
    return tuple(name for name, _ in VARIANT_REGISTRY)


def _meta_architectures(cfg: CfgNode) -> Words:
    """The meta-architectures whose task is that of this package's variant, your own included."""
    known = {name: cls for name, cls in META_ARCH_REGISTRY if getattr(cls, "task", None)}
    variant = cfg.MODEL.DETR.VARIANT
    if not _is_own(variant):
        return tuple(known)
    task = known[ARCHITECTURES.get(variant, "GroupDETR")].task
    return tuple(name for name, cls in known.items() if cls.task is task)


def _is_own(variant: str) -> bool:
    """Whether a variant is one of this package's; any other may do what it likes."""
    names = [name for name, _ in VARIANT_REGISTRY]
    return variant in names and VARIANT_REGISTRY.get(variant).__module__.startswith("groupdetr_d2.")


def _backbones(cfg: CfgNode) -> Words:
    return tuple(name for name, _ in BACKBONE_REGISTRY)


def _first_stages(cfg: CfgNode) -> Words:
    """The first stages of this package's variants; a variant of your own may have any."""
    variant = cfg.MODEL.DETR.VARIANT
    return FIRST_STAGES.get(variant, ("",)) if _is_own(variant) else (cfg.MODEL.DETR.TWO_STAGE,)


def _compilers(cfg: CfgNode) -> Words:
    """The backends that PyTorch knows; looking them up takes seconds, and is done if it matters."""
    known = torch.compiler.list_backends(exclude_tags=()) if cfg.MODEL.COMPILE else ()
    return ("", *known)


CHOICES: dict[str, Words | Callable[[CfgNode], Words]] = {
    "MODEL.DETR.VARIANT": _variants,
    "MODEL.META_ARCHITECTURE": _meta_architectures,
    "MODEL.BACKBONE.NAME": _backbones,
    "MODEL.COMPILE": _compilers,
    "MODEL.DETR.TWO_STAGE": _first_stages,
    "MODEL.DETR.PROJECTION_NORM": ("", "GN"),
    "SOLVER.OPTIMIZER": ("ADAMW",),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.ON_NONFINITE": ("raise", "skip"),
    "SOLVER.SHARDING": ("", "fsdp"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model",),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("relative_range", "relative", "absolute", "absolute_range"),
    "DATALOADER.ON_ERROR": ("raise", "skip"),
    "TEST.AUG.FUSION": ("boxes", "features"),
    "DATASETS.CUSTOM.BAD_BOXES": ("error", "drop"),
}
# keys that take a list of words
LISTS: dict[str, Words] = {"LOGGERS": ("tensorboard", "wandb", "mlflow")}


def check_choices(cfg: CfgNode) -> None:
    """Checks every key of the table, before data, model or weights are touched.

    Raises:
        ChoiceError: naming the key, its value and the words that it can be, or the key that is
            missing.
    """
    check_device("MODEL.DEVICE", value_of(cfg, "MODEL.DEVICE"))
    for key, words in CHOICES.items():
        value = value_of(cfg, key)
        allowed = words(cfg) if callable(words) else words
        if value not in allowed:
            raise ChoiceError(f"{key} is {value!r}; it can be {_listed(allowed)}")
    for key, allowed in LISTS.items():
        unknown = [word for word in value_of(cfg, key) if word not in allowed]
        if unknown:
            raise ChoiceError(f"{key} has {unknown[0]!r}; it can have {_listed(allowed)}")


def value_of(cfg: CfgNode, key: str):
    """The value of a key whose parts are joined by dots.

    Raises:
        ChoiceError: there is no such key.
    """
    for part in key.split("."):
        if part not in cfg:
            raise ChoiceError(
                f"the configuration has no key {key}: call add_groupdetr_config(cfg) after "
                "get_cfg(), and after the add_*_config of other projects, which may replace a "
                "section of the same name"
            )
        cfg = cfg[part]
    return cfg


def _listed(words: Words) -> str:
    names = [word or "empty" for word in words]
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
