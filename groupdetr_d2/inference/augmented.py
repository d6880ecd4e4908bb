"""Test-time augmentation: several sizes and flips of an image, and one set of detections."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.data.transforms import Augmentation
from detectron2.structures import Instances
from torch import Tensor, nn

from ..errors import UserError
from ..modeling.meta_arch import SetPredictor
from .fused_features import FusedFeaturesModel
from .views import build_resizes, view_of


class AugmentedModel(nn.Module):
    """A model that sees every image in several sizes, and flipped (TEST.AUG.FUSION boxes).

    The detections of all views are merged, boxes by weighted boxes fusion. Takes what the model
    takes, with the image in its original size under "original" (3, H, W).

    Args:
        resizes: of an image, one for each size in which it is seen.
        flip: whether each of them is seen mirrored, too.
        merge: ``(detections of every view, limit) -> detections``, the task's if not given.

    Raises:
        UserError: the model's task has no test-time augmentation.
    """

    def __init__(
        self,
        model: SetPredictor,
        *,
        resizes: Sequence[Augmentation],
        flip: bool,
        merge: Callable | None = None,
    ):
        super().__init__()
        if model.task.flip is None or model.task.merge is None:
            raise UserError(
                f"{type(model).__name__} has no test-time augmentation: set TEST.AUG.ENABLED False"
            )
        self.model, self.merge, self.flip_back = model, merge or model.task.merge, model.task.flip
        self.resizes = list(resizes)
        self.flips = (False, True) if flip else (False,)

    @property
    def detections_per_image(self) -> int:
        """The number of detections that the model keeps."""
        return self.model.detections_per_image

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detects on each image; returns what the model returns in evaluation."""
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, x: dict) -> Instances:
        image = x.get("original", x["image"])
        views = [self._detect_in_view(image, r, f, x) for r in self.resizes for f in self.flips]
        return self.merge(views, self.detections_per_image)

    def _detect_in_view(
        self, image: Tensor, resize: Augmentation, is_flipped: bool, x: dict
    ) -> Instances:
        """Detects in one view; returns detections in the original image's pixels."""
        view = view_of(image, resize, x)
        if is_flipped:
            view["image"] = view["image"].flip(2)
        found = self.model([view])[0]["instances"].to("cpu")
        return self.flip_back(found, x["width"]) if is_flipped else found


def build_evaluated_model(cfg, model: SetPredictor) -> nn.Module:
    """Returns the model, or with TEST.AUG.ENABLED the model with augmentation."""
    return build_augmented_model(cfg, model) if cfg.TEST.AUG.ENABLED else model


def build_augmented_model(cfg, model: Any) -> AugmentedModel | FusedFeaturesModel:
    """Builds the model with sizes, flips and fusion of TEST.AUG, whether that is enabled or not."""
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    kind = FusedFeaturesModel if cfg.TEST.AUG.FUSION == "features" else AugmentedModel
    return kind(plain, resizes=build_resizes(cfg), flip=cfg.TEST.AUG.FLIP)
