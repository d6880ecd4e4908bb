"""The meta-architectures: images and targets in, losses or `Instances` out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import BitMasks, ImageList, PolygonMasks
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..config import check_choices, check_ranges
from ..errors import UserError
from ..groups import QueryGroups
from ..layers.box_ops import box_xyxy_to_cxcywh
from ..losses.box2d import BoxPredictions, BoxTargets
from ..losses.criterion import Losses, SetCriterion
from ..losses.mask import MaskPredictions, MaskTargets
from ..structures import Memory, Predictions, Targets
from ..tasks.boxes import BOXES
from ..tasks.masks import MASKS
from ..tasks.task import Task
from .backbone import build_checked_backbone, padding_of
from .head import DETRHead, build_detr_head, build_groups
from .postprocessing import mask_instances, top_k_instances


class LabelError(UserError):
    """A label is outside the model's classes."""


class NonFiniteOutputError(UserError):
    """A model's outputs are NaN or infinite."""


class SetPredictor(nn.Module, ABC):
    """The part of a model that all tasks share: choosing groups, calling head and criterion.

    Args:
        groups: the groups of training; inference uses the primary one alone.
        num_classes: number of classes, which labels have to stay below.
        detections_per_image: number of predictions kept for each image.
        size_divisibility: number that the sides of a batch are padded to a multiple of, besides
            what the backbone needs; 0 for any.
    """

    task: ClassVar[Task]
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: DETRHead,
        criterion: SetCriterion,
        groups: QueryGroups,
        num_classes: int,
        detections_per_image: int,
        size_divisibility: int = 0,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ):
        super().__init__()
        self.backbone, self.head, self.criterion = backbone, head, criterion
        self.groups, self.num_classes = groups, num_classes
        self.detections_per_image = detections_per_image
        self.size_divisibility = size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Builds the constructor's arguments.

        Raises:
            ChoiceError: a key has a value that is none of its words.
            RangeError: a key has a number that nothing can be built with.
            UserError: the backbone lacks a feature map.
        """
        check_choices(cfg)
        check_ranges(cfg)
        backbone = build_checked_backbone(cfg)
        return {
            "backbone": backbone,
            "head": build_detr_head(cfg, backbone.output_shape()),
            "criterion": cls.task.build_criterion(cfg),
            "groups": build_groups(cfg),
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "size_divisibility": cfg.MODEL.DETR.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """The device of the parameters, which inputs are moved to."""
        return self.pixel_mean.device

    @property
    def padding(self) -> tuple[int, int]:
        """The number that sides are padded to a multiple of, and the side of a square; 0 for any.

        See :func:`groupdetr_d2.modeling.backbone.padding_of`.
        """
        divisor, square = padding_of(self.backbone)
        return math.lcm(divisor or 1, self.size_divisibility or 1), square

    def forward(
        self,
        batched_inputs: list[dict],
        num_targets: float | None = None,
        counts: Sequence[int] | None = None,
    ) -> Losses | list[dict]:
        """Computes losses in training, detections in evaluation.

        Args:
            batched_inputs: Detectron2's dataset dicts with "image" (3, H, W) and, in training,
                "instances".
            num_targets, counts: see :class:`SetCriterion`; for batches that are trained on part by
                part.

        Returns:
            weighted losses by name in training, else ``[{"instances": Instances}]`` in the
            original resolution of each image.
        """
        groups = self.groups if self.training else self.groups.primary()
        if not self.training:
            return self.postprocess(self.predict(batched_inputs, groups), batched_inputs)
        targets = self.build_targets(batched_inputs)
        predictions = self.predict(batched_inputs, groups, targets)
        with torch.autocast(self.device.type, enabled=False):
            losses = self.criterion(predictions, targets, groups, num_targets, counts)
        if has_event_storage():
            seconds = losses.match_seconds
            get_event_storage().put_scalar("match_time", seconds, smoothing_hint=False)
        return losses

    def predict(
        self, batched_inputs: list[dict], groups: QueryGroups, targets: Targets | None = None
    ) -> Predictions:
        """Computes what the queries of `groups` predict at every decoder layer.

        Args:
            targets: objects that denoising queries are made from; None at inference.
        """
        return self.head.decode(self.encode(batched_inputs), groups, targets)

    @abstractmethod
    def encode(self, batched_inputs: list[dict]) -> Memory:
        """Computes from the inputs the memory that decoders attend to."""

    @abstractmethod
    def build_targets(self, batched_inputs: list[dict]) -> Targets:
        """Collects the criterion's targets from the inputs' "instances"."""

    @abstractmethod
    def postprocess(self, predictions: Any, batched_inputs: list[dict]) -> list[dict]:
        """Turns the last layer's predictions into Detectron2's output format."""

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalises images, then pads them with zeros at the bottom and on the right.

        The batch has the size of the largest image, or the next one that the backbone takes.

        Raises:
            UserError: an image is larger than the backbone's square.
        """
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        divisor, square = self.padding
        check_square(images, square)
        return ImageList.from_tensors(images, divisor, padding_constraints={"square_size": square})


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


def task_of(cfg) -> Task:
    """The task of MODEL.META_ARCHITECTURE."""
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).task


@META_ARCH_REGISTRY.register()
class GroupDETR(SetPredictor):
    """The meta-architecture of 2D detection, with any DETR of `variants/`."""

    task = BOXES

    def encode(self, batched_inputs: list[dict]) -> Memory:
        """Computes the memory of one image per input."""
        images = self.preprocess_image(batched_inputs)
        return self.head.encode(self.backbone(images.tensor), padding_mask_of(images))

    def build_targets(self, batched_inputs: list[dict]) -> BoxTargets:
        """Collects labels, and boxes relative to each image's unpadded size."""
        instances = [x["instances"] for x in batched_inputs]
        for x in batched_inputs:
            check_labels(x, self.num_classes)
        labels = torch.cat([x.gt_classes for x in instances])
        boxes_xyxy = torch.cat(
            [x.gt_boxes.tensor / torch.tensor(x.image_size[::-1] * 2) for x in instances]
        )
        return BoxTargets(
            labels.to(self.device, non_blocking=True),
            box_xyxy_to_cxcywh(boxes_xyxy).to(self.device, non_blocking=True),
            counts=[len(x) for x in instances],
        )

    def postprocess(self, predictions: BoxPredictions, batched_inputs: list[dict]) -> list[dict]:
        """Returns the best detections, scaled to each image's original "height" and "width"."""
        check_finite([predictions.boxes[-1], predictions.logits[-1]], batched_inputs)
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        results = top_k_instances(
            predictions.logits[-1], predictions.boxes[-1], sizes, self.detections_per_image
        )
        return [
            {"instances": detector_postprocess(r, x.get("height", h), x.get("width", w))}
            for r, x, (h, w) in zip(results, batched_inputs, sizes, strict=True)
        ]


@META_ARCH_REGISTRY.register()
class GroupMask2Former(SetPredictor):
    """The meta-architecture of instance segmentation, with Mask2Former of `variants/`."""

    task = MASKS

    def encode(self, batched_inputs: list[dict]) -> Memory:
        """Computes the memory of one image per input; padding counts as image."""
        return self.head.encode(self.backbone(self.preprocess_image(batched_inputs).tensor), None)

    def build_targets(self, batched_inputs: list[dict]) -> MaskTargets:
        """Collects labels, and masks that are padded like the images."""
        instances = [x["instances"] for x in batched_inputs]
        for x in batched_inputs:
            check_labels(x, self.num_classes)
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        size = padded_size(sizes, self.padding)
        masks = [padded_masks(masks_of(x), size) for x in batched_inputs]
        return MaskTargets(
            torch.cat([x.gt_classes for x in instances]).to(self.device, non_blocking=True),
            torch.cat(masks).to(self.device, non_blocking=True),
            counts=[len(x) for x in instances],
        )

    def postprocess(self, predictions: MaskPredictions, batched_inputs: list[dict]) -> list[dict]:
        """Returns the best masks, in each image's original "height" and "width"."""
        outputs = [predictions.embeddings[-1], predictions.logits[-1], predictions.features.value]
        check_finite(outputs, batched_inputs)
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        originals = [
            (x.get("height", h), x.get("width", w))
            for x, (h, w) in zip(batched_inputs, sizes, strict=True)
        ]
        found = mask_instances(predictions, sizes, originals, self.detections_per_image)
        return [{"instances": instances} for instances in found]


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
