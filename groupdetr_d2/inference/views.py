"""The views of test-time augmentation: an image in several sizes."""

from detectron2.config import CfgNode
from detectron2.data.transforms import Augmentation
from torch import Tensor

from ..data.image_file import channels_first
from ..data.resize import LARGEST_SIDE, ResizeByFactor, ResizeShortestSide


def view_of(image: Tensor, resize: Augmentation, x: dict) -> dict:
    """Returns the input `x` of a model with an image (3, H, W) in another size."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return {**x, "image": channels_first(resize.get_transform(array).apply_image(array))}


def build_resizes(cfg: CfgNode) -> list[Augmentation]:
    """Builds the resizing to each size of TEST.AUG.

    Those are TEST.AUG.MIN_SIZES, or else TEST.AUG.SCALES times the model's own test size, so that a
    scale of 1 is what the model sees without augmentation. A size that comes twice counts once.
    """
    aug, own, bound = cfg.TEST.AUG, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if not own and not aug.MIN_SIZES:  # images are seen as they are
        return [ResizeByFactor(x, aug.MAX_SIZE or LARGEST_SIDE) for x in aug.SCALES]
    sizes = aug.MIN_SIZES or [max(1, round(x * own)) for x in aug.SCALES]
    bounds = {x: aug.MAX_SIZE or (round(bound * x / own) if own else LARGEST_SIDE) for x in sizes}
    return [ResizeShortestSide(size, largest) for size, largest in bounds.items()]
