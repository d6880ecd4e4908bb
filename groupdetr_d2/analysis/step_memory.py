"""The memory of a training step, from the configuration alone.

Static memory is arithmetic on the number of parameters; what forward and backward add is counted
on tensors without data (fake_step.py). Sizes are bytes of one process.
"""

from dataclasses import dataclass

from ..engine.solver import amp_dtype_of
from ..errors import UserError
from .fake_step import FakeModel, ParameterBytes, StepPeaks
from .random_batch import random_inputs

OBJECTS = 7  # of an image, as many as COCO's have
MOMENTS = 2  # of AdamW
SHARE_OF_PLAN = 0.9  # of a GPU; the rest is for CUDA itself, its libraries and fragments


@dataclass(frozen=True)
class StepMemory:
    """The memory of a process that trains, in bytes.

    Attributes:
        static: weights, gradients, optimizer, mean weights and the buckets of several processes,
            which stand whatever the batch is.
        activations: what the peak of forward and backward has beyond that. Gradients are made while
            activations are freed, so that it is less than all activations.
    """

    static: int
    activations: int

    @property
    def total(self) -> int:
        """The highest memory of the step."""
        return self.static + self.activations

    def fits(self, gpu_memory: float) -> bool:
        """Whether it fits into a GPU of so many GiB, a tenth of which is left for others."""
        return self.total <= SHARE_OF_PLAN * gpu_memory * 2**30

    def __str__(self) -> str:
        static, activations, total = (
            x / 2**30 for x in (self.static, self.activations, self.total)
        )
        return (
            f"a training step takes about {total:.1f} GiB a process: {static:.1f} of weights, "
            f"gradients and optimizer, {activations:.1f} of activations"
        )


def memory_of(
    peaks: StepPeaks, *, num_gpus: int, accumulates: bool, sharded: bool, has_mean: bool
) -> StepMemory:
    """Adds static memory to the peaks of a forward and backward.

    Args:
        num_gpus: processes W that train together.
        accumulates: whether a batch goes through the model in several parts, so that gradients are
            there already when the last ones come.
        sharded: whether weights, gradients, optimizer and mean are divided by W, and a layer at a
            time is gathered.
        has_mean: whether there is a mean of the weights (MODEL.EMA).
    """
    sizes = peaks.parameters
    if sharded and num_gpus > 1:
        static = _sharded(sizes, num_gpus, has_mean)
        return StepMemory(static, peaks.peak_beside_gradients)
    buckets = sizes.trained if num_gpus > 1 else 0
    before = sizes.all * (1 + has_mean) + MOMENTS * sizes.trained + buckets
    static = before + sizes.trained
    peak = static + peaks.peak_beside_gradients if accumulates else before + peaks.peak
    return StepMemory(static, max(peak - static, 0))


def _sharded(sizes: ParameterBytes, num_gpus: int, has_mean: bool) -> int:
    """Adds up what is divided among processes, and what is gathered, with its gradients."""
    divided = sizes.all * (1 + has_mean) + (1 + MOMENTS) * sizes.trained
    gathered = 2 * (sizes.largest_unit + sizes.outside_units)
    return -(-divided // num_gpus) + gathered


def estimate_step(
    cfg,
    *,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    num_gpus: int = 1,
    num_objects: int = OBJECTS,
    sharded: bool = False,
    device: str = "cuda",
) -> StepMemory:
    """Estimates the memory of a training step of a configuration as it is; no GPU is needed.

    ``str()`` of the result is a sentence. It takes a few seconds.

    Args:
        image_size: height and width; the largest of the configuration's training if not given.
        batch_size: images of a process, SOLVER.IMS_PER_BATCH / `num_gpus` if not given. They go
            through the model in SOLVER.ACCUMULATE_STEPS parts.
        num_gpus: processes that train together.
        num_objects: targets of each image.
        sharded: whether weights and optimizer are divided among processes.
        device: "cuda" or "cpu", whose kernels are counted.

    Raises:
        UserError: the images cannot be divided.
    """
    images, parts = batch_size or images_of_process(cfg, num_gpus), cfg.SOLVER.ACCUMULATE_STEPS
    at_once = -(-images // parts)
    size = image_size or largest_size(cfg)
    batch = random_inputs(cfg, size, at_once, num_objects)
    peaks = FakeModel(cfg).count(batch, amp_dtype_of(cfg), device, sharded=sharded)
    return memory_of(
        peaks,
        num_gpus=num_gpus,
        accumulates=parts > 1,
        sharded=sharded,
        has_mean=cfg.MODEL.EMA.ENABLED,
    )


def images_of_process(cfg, num_gpus: int) -> int:
    """The images of a batch that each process has.

    Raises:
        UserError: SOLVER.IMS_PER_BATCH cannot be divided.
    """
    images = cfg.SOLVER.IMS_PER_BATCH
    if num_gpus < 1 or images % num_gpus:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {images} is no multiple of --num-gpus {num_gpus}: set one of "
            "them, or --batch-size, the images of each GPU"
        )
    return images // num_gpus


def largest_size(cfg) -> tuple[int, int]:
    """The height and width of the largest image in training, before it is padded."""
    views, size = cfg.INPUT.VIEWS.SIZE, cfg.INPUT.IMAGE_SIZE
    if cfg.MODEL.META_ARCHITECTURE == "GroupPETR":
        return views[0], views[1]
    if size:
        return size, size
    return max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
