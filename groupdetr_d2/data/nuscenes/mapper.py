"""The mapper from a keyframe's record to a model's input: images, matrices and boxes.

One draw of resizing, crop and flip holds for all views and frames, as in PETR; the matrices follow.
Boxes and cameras stay where they are, until space itself is turned and scaled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image

from ..image_file import ImageReadError, channels_first, read_array
from .geometry import BOX_SIZE, YAW


@dataclass(frozen=True)
class ViewTransform:
    """A resizing, crop and flip of an image."""

    scale: float
    left: int  # of the crop, in pixels of the resized image
    top: int
    flip: bool
    size: tuple[int, int]  # (height, width) of the result

    def matrix(self) -> np.ndarray:
        """Computes the matrix (4, 4) that maps pixels of the image, times depth, to the result."""
        made = np.eye(4)
        made[0, 0], made[1, 1] = self.scale, self.scale
        made[0, 2], made[1, 2] = -self.left, -self.top
        if self.flip:
            made[0] = [-self.scale, 0, self.left + self.size[1], 0]
        return made

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Transforms an image (H, W, 3) of bytes; beyond its edges there are zeros."""
        height, width = image.shape[:2]
        resized = (int(width * self.scale), int(height * self.scale))
        picture = Image.fromarray(image).resize(resized, Image.Resampling.BICUBIC)
        box = (self.left, self.top, self.left + self.size[1], self.top + self.size[0])
        cropped = np.asarray(picture.crop(box))
        return cropped[:, ::-1] if self.flip else cropped


@dataclass(frozen=True)
class ViewAugmentation:
    """The random changes of images.

    Attributes:
        size: (height, width) of the results.
        scales: the smallest and the largest factor of resizing.
        flips: whether half of the samples are mirrored.
    """

    size: tuple[int, int]
    scales: tuple[float, float]
    flips: bool

    def draw(self, height: int, width: int) -> ViewTransform:
        """Draws a transform of images of this size; the bottom of an image is kept."""
        scale = float(np.random.uniform(*self.scales))
        left = int(np.random.uniform(0, max(0, int(width * scale) - self.size[1])))
        flip = bool(self.flips and np.random.rand() < 0.5)
        return ViewTransform(scale, left, int(height * scale) - self.size[0], flip, self.size)

    def fixed(self, height: int, width: int) -> ViewTransform:
        """Returns the transform of evaluation: the image is made to fill the result."""
        scale = max(self.size[0] / height, self.size[1] / width)
        left = max(0, int(width * scale) - self.size[1]) // 2
        return ViewTransform(scale, left, int(height * scale) - self.size[0], False, self.size)


@dataclass(frozen=True)
class SpaceAugmentation:
    """The random changes of space, about the vehicle's lidar.

    Attributes:
        rotation: the largest angle about z, in radians.
        scales: the smallest and the largest factor of lengths.
    """

    rotation: float
    scales: tuple[float, float]

    def draw(self) -> np.ndarray:
        """Draws the matrix (4, 4) that maps points to their new place."""
        angle = np.random.uniform(-self.rotation, self.rotation)
        scale = np.random.uniform(*self.scales)
        made = np.diag([scale, scale, scale, 1.0])
        made[:2, :2] = scale * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        return made


def augmented_boxes(boxes: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Moves boxes (T, 9) as :meth:`SpaceAugmentation.draw` moves points; velocities grow too."""
    scale = np.hypot(change[0, 0], change[1, 0])
    made = boxes.copy()
    made[:, :3] = boxes[:, :3] @ change[:3, :3].T
    made[:, 3:6] *= scale
    made[:, YAW] += np.arctan2(change[1, 0], change[0, 0])
    made[:, 7:9] = boxes[:, 7:9] @ change[:2, :2].T
    return made


@dataclass(frozen=True)
class EarlierFrame:
    """The choice of one earlier frame, which PETRv2 sees besides the keyframe.

    Attributes:
        first, end: the range of camera frames before the keyframe; the one just before it is 0.
        seconds: between two images of a camera, about.
    """

    first: int
    end: int
    seconds: float = 0.083  # of nuScenes

    def choose(self, number: int, is_train: bool) -> int | None:
        """Chooses one of `number` earlier frames, at random in training; None if there is none."""
        if not number:
            return None
        if not is_train:
            return min(self.fixed, number - 1)
        end = max(min(self.end, number), self.first + 1)
        return min(int(np.random.randint(self.first, end)), number - 1)

    @property
    def fixed(self) -> int:
        """The frame of evaluation: the middle of the range, and the first of a range of one."""
        return max(self.first, (self.first + self.end) // 2 - 1)

    @property
    def typical_seconds(self) -> float:
        """The time to the earlier frame, if there is none and the keyframe stands for it."""
        return (self.fixed + 1) * self.seconds


class FrameMapper:
    """Makes a model's input from a keyframe's record, see :mod:`.index`.

    Args:
        space: changes of space in training.
        earlier: the choice of an earlier frame; None for the keyframe alone.
        image_format: RGB or BGR.
        is_train: whether images and space are changed at random, and "instances" are made.
        box_range: x, y, z of the lowest and of the highest corner, in metres; objects whose centre
            is beyond it, seen from above, are left out of training.
    """

    def __init__(
        self,
        images: ViewAugmentation,
        space: SpaceAugmentation,
        *,
        earlier: EarlierFrame | None,
        image_format: str,
        is_train: bool,
        box_range: Sequence[float],
    ):
        self.images, self.space, self.earlier = images, space, earlier
        self.image_format, self.is_train = image_format, is_train
        self.augments = is_train  # analyses want "instances" alone
        self.low, self.high = np.array(box_range[:2]), np.array(box_range[3:5])

    def __call__(self, record: dict) -> dict:
        """Returns the record with images, matrices and, in training, "instances".

        "image" is (V, 3, H, W) uint8, "lidar2img" (V, 4, 4) float64; with an earlier frame its
        views follow those of the keyframe, and "interval" is the time between the two in seconds.

        Raises:
            ImageReadError: naming the file and the remedy.
        """
        d = {key: x for key, x in record.items() if key not in ("views", "earlier", "annotations")}
        views = list(record["views"])
        if self.earlier is not None:
            before, d["interval"] = self._earlier_views(record)
            views += before
        transform = self._transform(record)
        change = self.space.draw() if self.augments else np.eye(4)
        back = np.linalg.inv(change)
        matrix = transform.matrix()
        d["lidar2img"] = torch.from_numpy(
            np.stack([matrix @ view["lidar2img"] @ back for view in views])
        )
        d["image"] = self._read(views, transform, record["sample_token"])
        if self.is_train:
            d["instances"] = self._instances(record["annotations"], change, transform.size)
        return d

    def _transform(self, record: dict) -> ViewTransform:
        size = (record["height"], record["width"])
        return self.images.draw(*size) if self.augments else self.images.fixed(*size)

    def _earlier_views(self, record: dict) -> tuple[list[dict], float]:
        """Returns the views of an earlier frame, and the seconds to it.

        At a scene's start the keyframe stands for it, as in the official code.
        """
        assert self.earlier is not None
        current, frames = list(record["views"]), record["earlier"]
        chosen = self.earlier.choose(len(frames), self.augments)
        if chosen is None:
            return current, self.earlier.typical_seconds
        before = list(frames[chosen])
        pairs = zip(before, current, strict=True)
        return before, float(np.mean([old["seconds"] - new["seconds"] for old, new in pairs]))

    def _read(self, views: Sequence[dict], transform: ViewTransform, sample: str) -> torch.Tensor:
        known: dict[str, torch.Tensor] = {}
        for view in views:
            name = view["file_name"]
            if name not in known:
                known[name] = self._read_one(name, transform, sample)
        return torch.stack([known[view["file_name"]] for view in views])

    def _read_one(self, name: str, transform: ViewTransform, sample: str) -> torch.Tensor:
        try:
            return channels_first(transform.apply(read_array(name, self.image_format)))
        except Exception as error:
            raise ImageReadError(
                f"image {name} of sample {sample} cannot be used "
                f"({type(error).__name__}: {error}). Mend or replace the file; "
                "DATALOADER.ON_ERROR skip goes on without its keyframe in training"
            ) from error

    def _instances(
        self, annotations: Sequence[dict], change: np.ndarray, size: tuple[int, int]
    ) -> Instances:
        boxes = np.array([a["box"] for a in annotations], dtype=np.float64).reshape(-1, BOX_SIZE)
        labels = np.array([a["category_id"] for a in annotations], dtype=np.int64)
        inside = ((boxes[:, :2] > self.low) & (boxes[:, :2] < self.high)).all(1)
        moved = augmented_boxes(np.nan_to_num(boxes[inside]), change)  # unknown velocities are 0
        return Instances(
            size,
            gt_boxes3d=torch.from_numpy(moved.astype(np.float32)),
            gt_classes=torch.from_numpy(labels[inside]),
        )
