"""The optimizer of every DETR here: AdamW in two parameter groups."""

import torch
from detectron2.config import CfgNode
from torch import nn

from ..errors import UserError


def build_optimizer(cfg: CfgNode, model: nn.Module, *, clips: bool = True) -> torch.optim.Optimizer:
    """Builds AdamW; the backbone learns at SOLVER.BACKBONE_MULTIPLIER times SOLVER.BASE_LR.

    Parameters whose name contains one of SOLVER.SLOW_NAMES learn like the backbone. As in the
    official codes, weight decay applies to every parameter, norms and biases included.

    Args:
        clips: whether `step` clips the gradients first, as SOLVER.CLIP_GRADIENTS says; without it
            the caller does.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow_names = ("backbone.", *cfg.SOLVER.SLOW_NAMES)
    for slow in slow_names[1:]:
        if not any(slow in name for name, _ in trained):
            raise UserError(f"SOLVER.SLOW_NAMES has {slow!r}, which is in no parameter's name")
    backbone = [p for name, p in trained if any(x in name for x in slow_names)]
    rest = [p for name, p in trained if not any(x in name for x in slow_names)]
    lr = cfg.SOLVER.BASE_LR
    groups = [
        {"params": rest, "lr": lr},
        {"params": backbone, "lr": lr * cfg.SOLVER.BACKBONE_MULTIPLIER},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True)
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
