"""Test-time augmentation: several sizes and flips of an image, and one set of detections."""

from collections.abc import Callable

import torch
from detectron2.data.transforms import HFlipTransform, NoOpTransform, ResizeShortestEdge
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..evaluation.fusion import merge_by_fusion
from ..modeling.meta_arch import SetPredictor


class AugmentedModel(nn.Module):
    """A detector that looks at every image in several sizes, and flipped (TEST.AUG).

    The detections of all looks are merged by weighted boxes fusion. Takes what the model takes,
    with the image in its original size under "original" (3, H, W).

    Args:
        min_sizes: lengths of the shorter side.
        max_size: bound of the longer one.
        merge: (detections of every look, limit) -> detections.
    """

    def __init__(
        self,
        model: SetPredictor,
        *,
        min_sizes: tuple[int, ...],
        max_size: int,
        flip: bool,
        merge: Callable = merge_by_fusion,
    ):
        super().__init__()
        self.model, self.merge = model, merge
        self.resizes = [ResizeShortestEdge(size, max_size) for size in min_sizes]
        self.flips = (False, True) if flip else (False,)

    @property
    def detections_per_image(self) -> int:
        """Of the model."""
        return self.model.detections_per_image

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Like the model's in evaluation."""
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, x: dict) -> Instances:
        image = x.get("original", x["image"])
        looks = [self._look(image, r, f, x) for r in self.resizes for f in self.flips]
        return self.merge(looks, self.detections_per_image)

    def _look(
        self, image: Tensor, resize: ResizeShortestEdge, is_flipped: bool, x: dict
    ) -> Instances:
        """Detections of one look, in the original image's pixels."""
        array = image.permute(1, 2, 0).cpu().numpy()
        resized = resize.get_transform(array).apply_image(array)
        flip = HFlipTransform(x["width"]) if is_flipped else NoOpTransform()
        tensor = torch.as_tensor(resized).permute(2, 0, 1)
        inputs = {**x, "image": tensor.flip(2) if is_flipped else tensor}
        found = self.model([inputs])[0]["instances"].to("cpu")
        found.pred_boxes = Boxes(torch.as_tensor(flip.apply_box(found.pred_boxes.tensor.numpy())))
        return found


def build_evaluated_model(cfg, model: SetPredictor) -> nn.Module:
    """The model, or with TEST.AUG.ENABLED the model with augmentation."""
    aug = cfg.TEST.AUG
    if not aug.ENABLED:
        return model
    sizes = tuple(aug.MIN_SIZES)
    return AugmentedModel(model, min_sizes=sizes, max_size=aug.MAX_SIZE, flip=aug.FLIP)
