"""Random inputs of a model, the same for every call, to measure its cost with."""

import math

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

DIRECTIONS = (90, 35, 145, 270, 200, -20)  # of the cameras, degrees from the lidar's x axis
FOCAL = 0.79  # relative to the width of an image


def random_inputs(cfg, size: tuple[int, int], batch_size: int, num_objects: int) -> list[dict]:
    """Makes inputs of the configuration's model, with images of a (height, width)."""
    if cfg.MODEL.META_ARCHITECTURE != "GroupPETR":
        return make_batch(size, batch_size, num_objects, cfg.MODEL.DETR.NUM_CLASSES)
    num_frames = 2 if cfg.INPUT.VIEWS.EARLIER else 1
    numbers = (num_objects, cfg.MODEL.DETR.NUM_CLASSES)
    return make_frames(size, batch_size, *numbers, num_frames=num_frames)


def make_batch(size: tuple[int, int], batch_size: int, num_objects: int, num_classes: int):
    """Makes random images, boxes and masks in Detectron2's format, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    batch = []
    for _ in range(batch_size):
        corner = torch.rand(num_objects, 2, generator=generator) * 0.6
        extent = torch.rand(num_objects, 2, generator=generator) * 0.35 + 0.05
        boxes = torch.cat([corner, corner + extent], 1)
        instances = Instances(size)
        instances.gt_boxes = Boxes(boxes * torch.tensor([width, height, width, height]))
        instances.gt_masks = BitMasks(_discs(instances.gt_boxes.tensor, size))
        instances.gt_classes = torch.randint(num_classes, (num_objects,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def _discs(boxes_xyxy: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Makes a disc inside each box, (n, height, width) bool."""
    x, y = torch.arange(size[1]) + 0.5, torch.arange(size[0])[:, None] + 0.5
    x0, y0, x1, y1 = (side[:, None, None] for side in boxes_xyxy.unbind(1))
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1


def make_frames(
    size: tuple[int, int],
    batch_size: int,
    num_objects: int,
    num_classes: int,
    *,
    num_frames: int = 1,
) -> list[dict]:
    """Makes random photographs of six cameras, with boxes in space around them."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.stack([_camera(angle, size) for angle in DIRECTIONS * num_frames])
    batch = []
    for _ in range(batch_size):
        boxes = torch.rand(num_objects, 9, generator=generator) + 0.5
        boxes[:, :2] = 80 * torch.rand(num_objects, 2, generator=generator) - 40
        instances = Instances(size, gt_boxes3d=boxes)
        instances.gt_classes = torch.randint(num_classes, (num_objects,), generator=generator)
        shape = (len(matrices), 3, *size)
        image = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "lidar2img": matrices, "instances": instances})
        if num_frames > 1:
            batch[-1]["interval"] = 1.25
    return batch


def _camera(angle: float, size: tuple[int, int]) -> Tensor:
    """Makes the matrix (4, 4) from the lidar's frame to pixels of a camera that looks outwards."""
    height, width = size
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    axes = torch.eye(4, dtype=torch.float64)
    axes[:3, :3] = torch.tensor([[sin, -cos, 0], [0, 0, -1], [cos, sin, 0]])
    intrinsic = torch.diag(torch.tensor([FOCAL * width, FOCAL * width, 1, 1], dtype=torch.float64))
    intrinsic[0, 2], intrinsic[1, 2] = width / 2, height / 2
    return intrinsic @ axes
