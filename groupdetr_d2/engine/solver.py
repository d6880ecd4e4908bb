"""The optimizer of every DETR here: AdamW in groups of one rate and one decay each."""

import torch
from detectron2.config import CfgNode
from torch import nn

from ..errors import UserError
from ..layers.per_group import GroupLayerNorm
from ..modeling.queries import QueryBank

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, GroupLayerNorm)
EMBEDDINGS = (nn.Embedding, QueryBank)


def build_optimizer(cfg: CfgNode, model: nn.Module, *, clips: bool = True) -> torch.optim.Optimizer:
    """Builds AdamW; the backbone learns at SOLVER.BACKBONE_MULTIPLIER times SOLVER.BASE_LR.

    Parameters whose name contains one of SOLVER.SLOW_NAMES learn like the backbone. As in DETR's
    official codes, weight decay applies to every parameter, norms and biases included, unless
    SOLVER.WEIGHT_DECAY_EMBED is given, as in Mask2Former's.

    Args:
        clips: whether `step` clips the gradients first, as SOLVER.CLIP_GRADIENTS says; without it
            the caller does.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow_names = ("backbone.", *cfg.SOLVER.SLOW_NAMES)
    for slow in slow_names[1:]:
        if not any(slow in name for name, _ in trained):
            raise UserError(f"SOLVER.SLOW_NAMES has {slow!r}, which is in no parameter's name")
    lr, decay, own_decays = cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, decays_of(cfg, model)
    groups: dict[tuple[bool, float], dict] = {}
    for name, parameter in trained:
        is_slow = any(x in name for x in slow_names)
        rate = lr * cfg.SOLVER.BACKBONE_MULTIPLIER if is_slow else lr
        own = own_decays.get(parameter, decay)
        group = groups.setdefault((is_slow, own), {"params": [], "lr": rate, "weight_decay": own})
        group["params"].append(parameter)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: (key[0], key[1] != decay))]
    optimizer = torch.optim.AdamW(ordered, lr=lr, weight_decay=decay, fused=True)
    if clips and clip_norm_of(cfg):
        _clip_in_step(optimizer, clip_norm_of(cfg))
    return optimizer


def decays_of(cfg: CfgNode, model: nn.Module) -> dict[nn.Parameter, float]:
    """The weight decay of norms and of embeddings, where it is another than that of the rest."""
    if cfg.SOLVER.WEIGHT_DECAY_EMBED is None:
        return {}
    kinds = {NORMS: cfg.SOLVER.WEIGHT_DECAY_NORM, EMBEDDINGS: cfg.SOLVER.WEIGHT_DECAY_EMBED}
    return {
        parameter: decay
        for module in model.modules()
        for kind, decay in kinds.items()
        if isinstance(module, kind)
        for parameter in module.parameters(recurse=False)
    }


def _clip_in_step(optimizer: torch.optim.Optimizer, norm: float) -> None:
    def clip(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # a gradient scaler leaves it to a fused optimizer to unscale gradients, in its step
        scale = getattr(optimizer, "grad_scale", None)
        nn.utils.clip_grad_norm_(parameters, norm if scale is None else norm * scale.item())

    optimizer.register_step_pre_hook(clip)


def clip_norm_of(cfg: CfgNode) -> float:
    """The bound on the norm of all gradients together, 0 for none."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return clip.CLIP_VALUE if clip.ENABLED else 0.0


def amp_dtype_of(cfg: CfgNode) -> torch.dtype | None:
    """The type that a training step is autocast to; None for full precision."""
    return getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else None
