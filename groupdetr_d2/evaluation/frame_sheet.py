"""A sheet of pictures of keyframes with their true boxes."""

from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.structures import Instances

from ..data.image_file import ImageReadError
from ..data.nuscenes.geometry import BOX_SIZE
from ..data.nuscenes.index import NuScenesFrames
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
    """Draws keyframes from all over a scene, with their objects; False if none can be read."""
    number = min(len(frames), SHEET_FRAMES)
    tiles = []
    for place in np.linspace(0, len(frames) - 1, number).round().astype(int).tolist():
        record = frames[place]
        title, names = f"{record['scene']} {record['sample_token']}", frames.class_names
        picture, objects = FramePicture.of_record(record), true_instances(record)
        try:
            tiles.append(presentation.tile(title, picture, objects, names))
        except ImageReadError:  # the findings name it
            continue
    return bool(tiles) and cv2.imwrite(str(path), sheet(tiles, columns=presentation.columns))
