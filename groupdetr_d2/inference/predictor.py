"""The predictor: a checkpoint and images or keyframes in, detections and pictures out."""

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from ..checkpoint.restoring import restore
from ..config.choices import check_device
from ..errors import UserError
from ..modeling.meta_arch import task_of
from .augmented import build_evaluated_model
from .by_group import detections_of_group
from .detections import Detections

DEFAULT_THRESHOLD = 0.5  # of scores, where no evaluation has found a better one


class Predictor:
    """A trained model, ready for images, or for keyframes if it sees several cameras.

    Args:
        weights: a checkpoint of this package; it carries its configuration and class names.
        threshold: detections with a lower score are left out; if not given, the one that had the
            best F1 in the training's last evaluation, or 0.5 before any.
        classes: names of the classes to find; all if not given.
        batch_size: the most images of one size that go through the model together.
        device: "cpu", "cuda", "cuda:1", ...; a GPU if there is one.
        half: whether to compute in half precision: float16 on a GPU, bfloat16 on a CPU.
        image_size: pixels of an image's shorter side, in place of INPUT.MIN_SIZE_TEST; the bound
            of the longer side is scaled by as much.
        max_detections: the most detections on an image, in place of TEST.DETECTIONS_PER_IMAGE.
        opts: overrides of the configuration, ``["KEY", value, ...]``; with ``["TEST.AUG.ENABLED",
            True]`` every image is seen in several sizes and flipped.

    Attributes:
        names: of the classes.
        prepare: what a user gives -> what is drawn on and the model's input.

    Raises:
        CheckpointError: the file is none of this package's checkpoints.
        UserError: an argument is wrong.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        batch_size: int = 8,
        device: str | None = None,
        half: bool = False,
        image_size: int | None = None,
        max_detections: int | None = None,
        opts: Sequence | None = None,
    ):
        own = overrides(device, max_detections)
        restored = restore(
            weights,
            [*own, *(opts or ())],
            settle=None if image_size is None else lambda cfg: set_image_size(cfg, image_size),
        )
        known = restored.threshold if threshold is None else check_threshold(threshold)
        self.threshold = DEFAULT_THRESHOLD if known is None else known
        self.cfg, self.model, self.names = restored.cfg, restored.model, restored.classes
        self.task, self.batch_size = task_of(self.cfg), check_count("batch_size", batch_size)
        self.kept = None if classes is None else numbers_of(classes, self.names)
        self.half = half
        self.detector = build_evaluated_model(self.cfg, self.model).eval()
        self.prepare = self.task.build_reader(self.cfg)

    def __call__(
        self, image: Any, *, threshold: float | None = None, group: int | None = None
    ) -> Any:
        """Detects on an image, a keyframe, or several.

        Args:
            image: a path; a PIL image; an array (H, W, 3) BGR, (H, W, 4) BGRA or (H, W) grey, of
                bytes or of numbers of any range, which `eight_bits` makes bytes of; a tensor
                (3, H, W) or (1, H, W), RGB, of bytes or of floats in [0, 1]; for a model of several
                cameras the record of a keyframe, `NuScenesFrames[i]`. Several are a sequence of
                such, an array (B, H, W, 3), a tensor (B, 3, H, W), or an iterator.
            threshold: in place of the predictor's own.
            group: the group of queries to detect with, 0 .. K-1; the primary one if not given.

        Returns:
            :class:`Detections`; a list of them for several images; an iterator for an iterator,
            which takes no more than a batch of images in advance.

        Raises:
            ImageReadError: the file cannot be read, or the array is no image.
            UserError: the model has no such group, or sees something else, or a group is chosen
                with TEST.AUG.ENABLED.
        """
        stream = map(raised, self.each(as_several(image), threshold=threshold, group=group))
        if isinstance(image, Iterator):
            return stream
        return list(stream) if is_several(image) else next(stream)

    def each(
        self, images: Iterable, *, threshold: float | None = None, group: int | None = None
    ) -> Iterator[Detections | UserError]:
        """Detects on several images, a batch at a time.

        Yields:
            the detections of each; or for an image that cannot be used the error, with which
            :meth:`__call__` would end.
        """
        lowest = self.threshold if threshold is None else check_threshold(threshold)
        images = iter(images)
        while window := list(itertools.islice(images, self.batch_size)):
            read = [attempted(self.prepare, image) for image in window]
            inputs = [x[1] for x in read if not isinstance(x, UserError)]
            found = attempted(self.detect, inputs, group)
            instances = iter(found if isinstance(found, list) else [found] * len(inputs))
            for x in read:
                one = x if isinstance(x, UserError) else next(instances)
                yield one if isinstance(one, UserError) else self._detections(x, one, lowest)

    def _detections(self, read: tuple[Any, dict], found: Instances, threshold: float) -> Detections:
        picture, x = read
        about = {key: value for key, value in x.items() if key not in ("image", "original")}
        return Detections(picture, self._chosen(found, threshold), self.names, self.task, about)

    def _chosen(self, found: Instances, threshold: float) -> Instances:
        is_kept = found.scores >= threshold
        if self.kept is not None:
            is_kept &= torch.isin(found.pred_classes, self.kept)
        return found[is_kept]

    @torch.no_grad()
    def detect(self, inputs: Sequence[dict], group: int | None = None) -> list[Instances]:
        """Detects on a model's inputs; those of one size go through the model together.

        An image is thus never padded to the size of another, which would change its detections.

        Args:
            group: see :meth:`__call__`.

        Returns:
            all detections of each input, on the CPU.
        """
        found: dict[int, Instances] = {}
        dtype = torch.bfloat16 if self.model.device.type == "cpu" else torch.float16
        for places in by_size(inputs, self.batch_size):
            batch = [inputs[i] for i in places]
            with torch.autocast(self.model.device.type, dtype, enabled=self.half):
                if group is None:
                    results = [x["instances"].to("cpu") for x in self.detector(batch)]
                else:
                    results = self._detect_with(group, batch)
            found.update(zip(places, results, strict=True))
        return [found[i] for i in range(len(inputs))]

    def _detect_with(self, group: int, batch: list[dict]) -> list[Instances]:
        if self.cfg.TEST.AUG.ENABLED:
            raise UserError(
                "TEST.AUG.ENABLED goes with the primary group alone: leave out `group`, or the "
                "augmentation"
            )
        groups = self.model.groups.separate()
        numbers = groups.numbers()
        if group not in numbers:
            raise UserError(f"group {group} does not exist: the model has 0 .. {numbers[-1]}")
        predictions = self.model.predict(batch, groups)
        return detections_of_group(self.model, predictions, groups, batch, group)


def attempted(function: Callable, *args: Any) -> Any:
    """Returns what a function returns, or the error that a user can mend."""
    try:
        return function(*args)
    except UserError as error:
        return error


def raised(found: Detections | UserError) -> Detections:
    """Returns detections, and raises an error."""
    if isinstance(found, UserError):
        raise found
    return found


def as_several(image: Any) -> Iterable:
    """Returns what a user gives as something to iterate over."""
    return image if isinstance(image, Iterator) or is_several(image) else [image]


def is_several(image: Any) -> bool:
    """Whether what a user gives are several images: a sequence, or an array of four dimensions."""
    if isinstance(image, Sequence):
        return not isinstance(image, (str, bytes))
    return getattr(image, "ndim", 0) == 4


def by_size(inputs: Sequence[dict], limit: int) -> Iterator[list[int]]:
    """Yields the places of inputs whose images have one size, at most `limit` at a time."""
    places: dict[tuple, list[int]] = {}
    for i, x in enumerate(inputs):
        places.setdefault(tuple(x["image"].shape), []).append(i)
    for same in places.values():
        for start in range(0, len(same), limit):
            yield same[start : start + limit]


def overrides(device: str | None, max_detections: int | None) -> list:
    """Makes overrides of the configuration of a predictor's arguments.

    Raises:
        UserError: an argument is wrong.
    """
    opts: list = []
    if device is not None:
        check_device("device", device)
        opts += ["MODEL.DEVICE", device]
    if max_detections is not None:
        check_count("max_detections", max_detections)
        opts += ["TEST.DETECTIONS_PER_IMAGE", max_detections]
    return opts


def set_image_size(cfg: CfgNode, size: int) -> None:
    """Sets the shorter side of images in pixels, and scales the bound of the longer side.

    Raises:
        UserError: it is no such number, or the model's images are of one size.
    """
    check_count("image_size", size)
    if task_of(cfg).sees != "images":
        raise UserError("image_size: the photographs of several cameras have the size INPUT.VIEWS")
    ratio = cfg.INPUT.MAX_SIZE_TEST / max(1, cfg.INPUT.MIN_SIZE_TEST)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = size, round(size * ratio)


def numbers_of(classes: Sequence[str], names: Sequence[str]) -> Tensor:
    """Returns the numbers of the classes of some names.

    Raises:
        UserError: the model has no class of a name; the nearest is named.
    """
    wanted = [classes] if isinstance(classes, str) else list(classes)
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=3, cutoff=0)
            raise UserError(f"the model has no class {name!r}; near names: {', '.join(near)}")
    return torch.tensor([names.index(name) for name in wanted], dtype=torch.int64)


def check_count(name: str, value: int) -> int:
    """Checks that an argument is a whole number of at least 1.

    Raises:
        UserError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value!r}; it is a whole number, 1 or more")
    return value


def check_threshold(threshold: float) -> float:
    """Checks that a threshold of scores is a number; scores are 0 to 1.

    Raises:
        UserError: it is none.
    """
    if not math.isfinite(threshold):
        raise UserError(f"the threshold is {threshold}; it can be 0 to 1")
    return threshold
