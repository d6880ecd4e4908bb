"""Some of Detectron2's functions, taught about the models of this package.

`build_optimizer` knows SGD alone, and `GeneralizedRCNNWithTTA` R-CNNs alone; neither has a registry
that a plugin could add to. Scripts written for Detectron2 call both. Importing this module, which
`add_groupdetr_config` does, makes them build what the configuration says if the model is one of
this package. For other models they stay what they are.

Its `COCOEvaluator` ends in a TypeError if it is asked for a task that a model does not have; here
it says so.
"""

from typing import Any

import detectron2.engine.defaults
import detectron2.solver
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import coco_evaluation
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNNWithTTA
from detectron2.solver import build
from torch import nn

from ..errors import UserError
from ..inference.augmented import build_augmented_model
from ..modeling.meta_arch import SetPredictor
from .solver import build_optimizer as build_adamw

build_sgd, add_clipping = build.build_optimizer, build.maybe_add_gradient_clipping


evaluate_on_coco = coco_evaluation._evaluate_predictions_on_coco
# of the tasks beside boxes; pycocotools gives detections the outlines of their boxes, as lists
RESULT_FIELDS = {"segm": ("segmentation", dict), "keypoints": ("keypoints", list)}


class EvaluatorError(UserError):
    """An evaluator is asked for a task that the detections are not of."""


class OptimizerError(UserError):
    """Detectron2 would train a DETR with SGD."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds AdamW with clipping for a model of this package, for others what Detectron2 builds."""
    return (build_adamw if _is_ours(model) else build_sgd)(cfg, model)


def _is_ours(model: nn.Module) -> bool:
    is_wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
    return isinstance(model.module if is_wrapped else model, SetPredictor)


def _clipping_or_error(cfg: CfgNode, optimizer: Any) -> Any:
    """Ends Detectron2's `build_optimizer` where a script has imported it before it was taught."""
    is_sgd = isinstance(optimizer, torch.optim.SGD) or optimizer is torch.optim.SGD
    is_ours = issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), SetPredictor)
    if is_sgd and is_ours and cfg.SOLVER.OPTIMIZER == "ADAMW":
        raise OptimizerError(
            "SOLVER.OPTIMIZER is ADAMW, but detectron2.solver.build_optimizer builds SGD if it is "
            "imported ahead of groupdetr_d2: use `from groupdetr_d2 import build_optimizer`"
        )
    return add_clipping(cfg, optimizer)


def _evaluate_or_error(coco: Any, results: list[dict], task: str, *rest: Any, **named: Any) -> Any:
    """Evaluates detections of which all have what the task needs."""
    field, kind = RESULT_FIELDS.get(task, ("", object))
    if not all(isinstance(result.get(field), kind) for result in results):
        raise EvaluatorError(
            f"COCOEvaluator is asked for {task}, and the detections have no {field}: give it the "
            "tasks that the model has, or none, and it finds them itself"
        )
    return evaluate_on_coco(coco, results, task, *rest, **named)


def _augmented_or_rcnn(
    cls: type, cfg: Any = None, model: Any = None, *rest: Any, **named: Any
) -> Any:
    """Makes `GeneralizedRCNNWithTTA(cfg, model)` this package's test-time augmentation."""
    return build_augmented_model(cfg, model) if _is_ours(model) else object.__new__(cls)


for _module in (detectron2.solver, build, detectron2.engine.defaults):
    _module.build_optimizer = build_optimizer
build.maybe_add_gradient_clipping = _clipping_or_error
coco_evaluation._evaluate_predictions_on_coco = _evaluate_or_error
GeneralizedRCNNWithTTA.__new__ = _augmented_or_rcnn
