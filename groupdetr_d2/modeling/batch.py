"""The images and targets of a batch: checks, padding, and masks of one size."""

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, ImageList, PolygonMasks
from torch import Tensor, nn

from ..errors import UserError


class LabelError(UserError):
    """A label is outside the model's classes."""


class NonFiniteOutputError(UserError):
    """A model's outputs are NaN or infinite."""


def check_square(images: Sequence[Tensor], side: int) -> None:
    """Checks that images (3, H, W) fit into a square; Detectron2 would cut off what does not.

    Args:
        side: of the square; 0 for none.

    Raises:
        UserError: an image does not fit.
    """
    largest = max(max(x.shape[-2:]) for x in images)
    if 0 < side < largest:
        raise UserError(
            f"an image has a side of {largest} pixels, and the backbone takes squares of {side}: "
            f"set INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST to at most {side}"
        )


def masks_of(image: dict) -> Tensor:
    """Returns the masks of an image's objects, (T, height, width) bool.

    Detectron2's own mapper gives polygons.

    Raises:
        UserError: there are none.
    """
    instances = image["instances"]
    if not len(instances):  # of which Detectron2's mapper makes no masks
        return torch.zeros(0, *instances.image_size, dtype=torch.bool)
    if not instances.has("gt_masks"):
        raise UserError(
            f"image {image.get('file_name', image.get('image_id'))} has no masks to learn from: "
            "Detectron2's mapper loads them with MODEL.MASK_ON True"
        )
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    return masks.tensor


def padded_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Pads masks (T, height, width) at the bottom and on the right to a size."""
    height, width = masks.shape[1:]
    return nn.functional.pad(masks.bool(), (0, size[1] - width, 0, size[0] - height))


def padded_size(sizes: Sequence[tuple[int, int]], padding: tuple[int, int]) -> tuple[int, int]:
    """Computes the (height, width) that images of some sizes are padded to as a batch.

    Args:
        padding: see :attr:`SetPredictor.padding`.
    """
    divisor, square = padding
    if square:
        return square, square
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
    return height, width


def check_finite(outputs: Sequence[Tensor], batched_inputs: list[dict]) -> None:
    """Checks that predictions are numbers.

    Raises:
        NonFiniteOutputError: they are not.
    """
    if torch.jit.is_tracing() or all(x.isfinite().all() for x in outputs):
        return
    names = [x.get("file_name", x.get("image_id", "an image")) for x in batched_inputs]
    raise NonFiniteOutputError(
        f"the model's outputs on {', '.join(map(str, names))} are not finite: its weights are NaN "
        "or too large. An earlier checkpoint may be sound; a lower SOLVER.BASE_LR helps"
    )


def check_labels(image: dict, num_classes: int) -> None:
    """Checks the labels of an image.

    Raises:
        LabelError: a class does not exist in the model.
    """
    labels = image["instances"].gt_classes
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise LabelError(
            f"image {image.get('file_name', image.get('image_id'))} has an object of class "
            f"{wrong[0].item()}, but MODEL.DETR.NUM_CLASSES is {num_classes}: classes count from 0"
        )


def padding_mask_of(images: ImageList) -> Tensor | None:
    """Returns (B, H, W) bool, True on padding; None if no image of the batch is padded.

    A trace always has a mask: it is used for images of other sizes.
    """
    height, width = images.tensor.shape[-2:]
    if torch.jit.is_tracing():  # sizes are tensors
        sizes = torch.stack(images.image_sizes)
    elif all(tuple(size) == (height, width) for size in images.image_sizes):
        return None
    else:
        sizes = torch.tensor([tuple(size) for size in images.image_sizes])
    sizes = sizes.to(images.tensor.device, non_blocking=True)  # (B, 2)
    rows = torch.arange(height, device=sizes.device)[None, :, None]
    columns = torch.arange(width, device=sizes.device)[None, None, :]
    return (rows >= sizes[:, 0, None, None]) | (columns >= sizes[:, 1, None, None])
