"""A sheet of pictures of keyframes with their true boxes."""

from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.structures import Instances

from ..data.image_file import ImageReadError
from ..data.nuscenes.geometry import BOX_SIZE
from ..data.nuscenes.index import NuScenesFrames
from ..data.variety import Objects, others, varied_images
from .drawing import sheet
from .frame_picture import FramePicture
from .presentation import Presentation

SHEET_FRAMES = 6


def true_instances(record: dict) -> Instances:
    """Makes instances with `gt_boxes3d` (T, 9) and `gt_classes` of a keyframe's annotations."""
    annotations = record["annotations"]
    boxes = np.array([a["box"] for a in annotations], dtype=np.float32).reshape(-1, BOX_SIZE)
    return Instances(
        (record["height"], record["width"]),
        gt_boxes3d=torch.from_numpy(boxes),
        gt_classes=torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64),
    )


def draw_frame_sheet(presentation: Presentation, frames: NuScenesFrames, path: Path) -> bool:
    """Draws keyframes that together show what there is, with their objects.

    Returns:
        whether any can be read.
    """
    objects = objects_of_frames(frames)
    chosen = varied_images(objects, SHEET_FRAMES)
    tiles: list[np.ndarray] = []
    for place, reason in [*chosen, *others(objects, [place for place, _ in chosen])]:
        if len(tiles) == SHEET_FRAMES:
            break
        record = frames[place]
        title, names = f"{record['scene']} {record['sample_token']}", frames.class_names
        picture, own = FramePicture.of_record(record), true_instances(record)
        try:
            tiles.append(presentation.tile(f"{title}: {reason}", picture, own, names))
        except ImageReadError:  # the findings name it
            continue
    return bool(tiles) and cv2.imwrite(str(path), sheet(tiles, columns=presentation.columns))


def objects_of_frames(frames: NuScenesFrames) -> Objects:
    """Lists the objects of keyframes; their size is the cube root of their volume."""
    annotations = [frames[i]["annotations"] for i in range(len(frames))]
    image_of = np.repeat(np.arange(len(frames)), [len(own) for own in annotations])
    flat = [a for own in annotations for a in own]
    boxes = np.array([a["box"] for a in flat], dtype=np.float64).reshape(-1, BOX_SIZE)
    classes = np.array([a["category_id"] for a in flat], dtype=np.int64)
    sides = np.cbrt(boxes[:, 3:6].prod(1))
    return Objects(image_of, classes, sides, len(frames), frames.class_names)
