"""The optimizer of every DETR here: AdamW in groups of one rate and one decay each."""

import torch
from detectron2.config import CfgNode
from torch import nn

from .rates import Rate, rates_of


def build_optimizer(cfg: CfgNode, model: nn.Module, *, clips: bool = True) -> torch.optim.Optimizer:
    """Builds AdamW with the rates of :func:`groupdetr_d2.engine.rates.rates_of`.

    The backbone learns at SOLVER.BACKBONE_MULTIPLIER times SOLVER.BASE_LR, as do parameters whose
    name contains one of SOLVER.SLOW_NAMES. As in DETR's official codes, weight decay applies to
    every parameter, norms and biases included, unless SOLVER.NO_DECAY says otherwise or
    SOLVER.WEIGHT_DECAY_EMBED is given, as in Mask2Former's.

    Args:
        clips: whether `step` clips the gradients first, as SOLVER.CLIP_GRADIENTS says; without it
            the caller does.
    """
    parameters, rates = dict(model.named_parameters()), rates_of(cfg, model)
    members: dict[Rate, list[nn.Parameter]] = {}
    for name, rate in rates.items():
        members.setdefault(rate, []).append(parameters[name])
    lr, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY
    # a checkpoint knows groups by their order
    ordered = sorted(members, key=lambda x: (x.is_slow, -x.lr, x.weight_decay != decay))
    groups = [
        {"params": members[rate], "lr": rate.lr, "weight_decay": rate.weight_decay}
        for rate in ordered
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=decay, fused=True)
    if clips and clip_norm_of(cfg):
        _clip_in_step(optimizer, clip_norm_of(cfg))
    return optimizer


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
