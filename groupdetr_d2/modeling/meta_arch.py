"""The meta-architectures: images and targets in, losses or `Instances` out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..config import check_choices, check_ranges
from ..errors import UserError
from ..groups import QueryGroups
from ..layers.box3d_ops import encode_boxes
from ..layers.box_ops import box_xyxy_to_cxcywh
from ..layers.grid_mask import GridMask
from ..losses.box2d import BoxPredictions, BoxTargets
from ..losses.box3d import Box3DPredictions, Box3DTargets
from ..losses.criterion import Losses, SetCriterion
from ..losses.mask import MaskPredictions, MaskTargets
from ..structures import Memory, Predictions, Targets, Views
from ..tasks.boxes import BOXES
from ..tasks.boxes3d import BOXES3D
from ..tasks.masks import MASKS
from ..tasks.task import Task
from .backbone import build_checked_backbone, padding_of
from .batch import (
    check_finite,
    check_labels,
    check_square,
    masks_of,
    padded_masks,
    padded_size,
    padding_mask_of,
)
from .head import DETRHead, build_detr_head, build_groups
from .postprocessing import box3d_instances, mask_instances, top_k_instances


class SetPredictor(nn.Module, ABC):
    """The part of a model that all tasks share: choosing groups, calling head and criterion.

    Args:
        groups: the groups of training; inference uses the primary one alone.
        num_classes: number of classes, which labels have to stay below.
        detections_per_image: number of predictions kept for each image.
        size_divisibility: number that the sides of a batch are padded to a multiple of, besides
            what the backbone needs; 0 for any.
        grid_mask: probability that squares of a grid are cut out of the images of a batch.
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
        grid_mask: float = 0.0,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ):
        super().__init__()
        self.backbone, self.head, self.criterion = backbone, head, criterion
        self.groups, self.num_classes = groups, num_classes
        self.detections_per_image = detections_per_image
        self.size_divisibility, self.grid_mask = size_divisibility, GridMask(grid_mask)
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
            "grid_mask": cfg.INPUT.GRID_MASK,
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
        batch = ImageList.from_tensors(images, divisor, padding_constraints={"square_size": square})
        batch.tensor = self.grid_mask(batch.tensor)
        return batch


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


@META_ARCH_REGISTRY.register()
class GroupPETR(SetPredictor):
    """The meta-architecture of detection in space from several cameras, with PETR of `variants/`.

    The "image" of an input is (V, 3, H, W), and "lidar2img" (V, 4, 4) maps points to its pixels.
    """

    task = BOXES3D

    def encode(self, batched_inputs: list[dict]) -> Memory:
        """Computes the memory of all views of an input."""
        images = self.preprocess_image(batched_inputs)  # (B, V, 3, H, W)
        features = self.backbone(images.tensor.flatten(0, 1))
        return self.head.encode(features, self.views_of(batched_inputs, images))

    def views_of(self, batched_inputs: list[dict], images: ImageList) -> Views:
        """Collects the cameras of a batch; their matrices are inverted in float64, on the host.

        Raises:
            UserError: the inputs have different numbers of views.
        """
        numbers = {len(x["lidar2img"]) for x in batched_inputs}
        if len(numbers) != 1:
            raise UserError(f"the samples of a batch have {sorted(numbers)} views; it must be one")
        matrices = torch.stack([torch.as_tensor(x["lidar2img"]) for x in batched_inputs])
        inverse = torch.linalg.inv(matrices.double()).to(self.pixel_mean.dtype)
        interval = None
        if "interval" in batched_inputs[0]:
            seconds = torch.tensor([x["interval"] for x in batched_inputs])
            interval = seconds.to(self.device, self.pixel_mean.dtype, non_blocking=True)
        return Views(
            img2lidar=inverse.to(self.device, non_blocking=True),
            size=(images.tensor.shape[-2], images.tensor.shape[-1]),
            padding_mask=padding_mask_of(images),
            interval=interval,
        )

    def build_targets(self, batched_inputs: list[dict]) -> Box3DTargets:
        """Collects labels and the codes of boxes."""
        instances = [x["instances"] for x in batched_inputs]
        for x in batched_inputs:
            check_labels(x, self.num_classes)
        codes = encode_boxes(torch.cat([x.gt_boxes3d for x in instances]))
        return Box3DTargets(
            torch.cat([x.gt_classes for x in instances]).to(self.device, non_blocking=True),
            codes.to(self.device, non_blocking=True),
            counts=[len(x) for x in instances],
        )

    def postprocess(self, predictions: Box3DPredictions, batched_inputs: list[dict]) -> list[dict]:
        """Returns the best boxes, in the lidar's frame of each sample."""
        logits, codes = predictions.logits[-1], predictions.codes[-1]
        check_finite([codes, logits], batched_inputs)
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        kept_range = self.head.predictor.get_buffer("kept_range")
        found = box3d_instances(logits, codes, sizes, self.detections_per_image, kept_range)
        return [{"instances": instances} for instances in found]
