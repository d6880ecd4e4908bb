"""Test-time augmentation: several sizes and flips of an image, and one set of detections."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import Augmentation
from detectron2.structures import Instances
from torch import Tensor, nn

from ..data.image_file import channels_first
from ..data.resize import LARGEST_SIDE, ResizeByFactor, ResizeShortestSide
from ..errors import UserError
from ..modeling.meta_arch import SetPredictor


class AugmentedModel(nn.Module):
    """A model that sees every image in several sizes, and flipped (TEST.AUG).

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
        array = image.permute(1, 2, 0).cpu().numpy()
        tensor = channels_first(resize.get_transform(array).apply_image(array))
        inputs = {**x, "image": tensor.flip(2) if is_flipped else tensor}
        found = self.model([inputs])[0]["instances"].to("cpu")
        return self.flip_back(found, x["width"]) if is_flipped else found


def build_evaluated_model(cfg, model: SetPredictor) -> nn.Module:
    """Returns the model, or with TEST.AUG.ENABLED the model with augmentation."""
    return build_augmented_model(cfg, model) if cfg.TEST.AUG.ENABLED else model


def build_augmented_model(cfg, model: Any) -> AugmentedModel:
    """Builds the model with the sizes and flips of TEST.AUG, whether that is enabled or not."""
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return AugmentedModel(plain, resizes=build_resizes(cfg), flip=cfg.TEST.AUG.FLIP)


def build_resizes(cfg: CfgNode) -> list[Augmentation]:
    """Builds the resizing to each size of TEST.AUG.

    Those are TEST.AUG.MIN_SIZES, or else TEST.AUG.SCALES times the model's own test size, so that a
    scale of 1 is what the model sees without augmentation. A size that comes twice counts once.
    """
    aug, own, bound = cfg.TEST.AUG, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if not own and not aug.MIN_SIZES:  # images are seen as they are
        return [ResizeByFactor(x, aug.MAX_SIZE or round(x * bound)) for x in aug.SCALES]
    sizes = aug.MIN_SIZES or [max(1, round(x * own)) for x in aug.SCALES]
    bounds = {x: aug.MAX_SIZE or (round(bound * x / own) if own else LARGEST_SIDE) for x in sizes}
    return [ResizeShortestSide(size, largest) for size, largest in bounds.items()]
