"""A keyframe as a picture to draw on: the photographs of its cameras, and their matrices."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from detectron2.structures import Instances

from ..data.image_file import read_bgr
from ..data.nuscenes.names import CAMERAS
from .drawing3d import draw_frame
from .drawn_boxes import DrawnBoxes


class Photographs(Sequence):
    """Photographs (H, W, 3) BGR in files, read one by one when they are asked for."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place):
        """Reads a photograph.

        Raises:
            ImageReadError: it cannot be read.
        """
        return read_bgr(self.paths[place])


@dataclass(frozen=True)
class FramePicture:
    """The photographs of a keyframe.

    Attributes:
        views: each with "camera", "width", "height" and "lidar2img" (4, 4), in pixels of the view.
        photographs: (H, W, 3) BGR in the order of the views, of any size.
        height: of a photograph in the drawn picture, in pixels.
    """

    views: Sequence[dict]
    photographs: Sequence[np.ndarray]
    height: int = 360

    @classmethod
    def of_record(cls, record: dict) -> "FramePicture":
        """Makes the picture of a keyframe's record, see data/nuscenes/index.py.

        Photographs are read when they are drawn on.
        """
        views = record["views"]
        return cls(views, Photographs([view["file_name"] for view in views]))

    @classmethod
    def of_input(cls, item: dict, image_format: str) -> "FramePicture":
        """Makes the photographs of a model's input; those of an earlier frame are left out."""
        images = item["image"][: len(CAMERAS)].permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
        images = images if image_format == "BGR" else images[..., ::-1]
        height, width = images.shape[1:3]
        views = [
            {"camera": camera, "width": width, "height": height, "lidar2img": np.asarray(matrix)}
            for camera, matrix in zip(CAMERAS, item["lidar2img"], strict=False)
        ]
        return cls(views, [np.ascontiguousarray(image) for image in images])

    def fit(self, side: int) -> "FramePicture":
        """Chooses a height with which the drawn picture fits into a square."""
        shape = max(view["width"] / view["height"] for view in self.views)
        # three photographs beside one another, and the square from above of twice their height;
        # between them are gaps of 16 pixels in all, and widths may be rounded up
        return replace(self, height=int((side - 18) / (3 * shape + 2)))

    def draw(
        self, names: Sequence[str], *, truth: Instances | None, found: Instances | None
    ) -> np.ndarray:
        """Draws true boxes, detections or both, (H, W, 3) BGR."""
        boxes = (
            None if truth is None else DrawnBoxes.of_truth(truth),
            None if found is None else DrawnBoxes.of_found(found),
        )
        return draw_frame(self.views, self.photographs, *boxes, names, height=self.height)
