"""The input of models of single images, made of what a user has: a file or an array."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..data.image_file import channels_first, read_any
from ..data.resize import ResizeShortestSide


class ImageReader:
    """Makes a model's input of what `read_any` takes: a path, an array and so on.

    Args:
        image_format: RGB or BGR.
        keeps_original: whether the input has the unresized image, too.
    """

    def __init__(self, resize: ResizeShortestSide, *, image_format: str, keeps_original: bool):
        self.resize, self.image_format = resize, image_format
        self.keeps_original = keeps_original

    def __call__(self, image: Any) -> tuple[np.ndarray, dict]:
        """Returns the image (H, W, 3) BGR and the model's input.

        Raises:
            ImageReadError: the file cannot be read, or it is no image.
        """
        image = read_any(image)
        rgb = image if self.image_format == "BGR" else image[:, :, ::-1]
        resized = self.resize.get_transform(rgb).apply_image(rgb)
        height, width = image.shape[:2]
        inputs = {"image": channels_first(resized), "height": height, "width": width}
        if self.keeps_original:
            inputs["original"] = channels_first(rgb)
        return image, inputs


def build_image_reader(cfg: CfgNode) -> ImageReader:
    """Builds the reader of INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST."""
    return ImageReader(
        ResizeShortestSide(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        image_format=cfg.INPUT.FORMAT,
        keeps_original=cfg.TEST.AUG.ENABLED,
    )
