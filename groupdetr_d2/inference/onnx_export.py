"""ONNX export: images in, detections of the primary group out."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..modeling.meta_arch import SetPredictor, check_square
from ..tasks.task import ExportedOutputs, Tolerance

MIN_SAME = 0.9  # share of detections that PyTorch and onnxruntime have in common


class ExportError(UserError):
    """A model cannot be exported, or gives other results afterwards."""


def outputs_of(model: SetPredictor) -> ExportedOutputs:
    """Returns the outputs that the exported file of a model has.

    Raises:
        ExportError: models of the task are not exported.
    """
    if model.task.exported is None:
        raise ExportError(
            f"{type(model).__name__} sees several cameras and their matrices, and has no export: "
            "use predict, or Predictor(weights) in Python"
        )
    return model.task.exported


class Detector(nn.Module):
    """The exported module: normalisation, the model, and the best (query, class) pairs.

    Raises:
        ExportError: models of the task are not exported.
    """

    def __init__(self, model: SetPredictor):
        super().__init__()
        self.model, self.outputs = model, outputs_of(model)
        self.groups = model.groups.primary()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detects with the primary group.

        Args:
            images: (B, 3, H, W) float32 in 0 .. 255, channels as in INPUT.FORMAT, all of one size
                and without padding.

        Returns:
            the outputs of the task for the best detections, (B, k, ...) each, best first.
        """
        model, (height, width) = self.model, images.shape[-2:]
        normalised = (images - model.pixel_mean) / model.pixel_std
        padded, mask = pad_for(model.padding, normalised)
        features = model.backbone(padded)
        predictions = model.head.decode(model.head.encode(features, mask), self.groups)
        return self.outputs.select(predictions, (height, width), model.detections_per_image)


def pad_for(padding: tuple[int, int], images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Pads images (B, 3, H, W) to sides that a model takes, see :attr:`SetPredictor.padding`.

    Returns:
        the images, and (B, height, width) bool, True on padding; None where any side will do.
    """
    divisor, square = padding
    if divisor <= 1 and not square:
        return images, None
    if square:
        check_square(list(images[:1]), square)
    height, width = images.shape[-2:]
    # in this form the exporter sees that the padded sides are multiples
    bottom, right = (
        (square or (n + divisor - 1) // divisor * divisor) - n for n in (height, width)
    )
    padded = F.pad(images, (0, right, 0, bottom))
    rows, columns = (torch.arange(n, device=images.device) for n in padded.shape[-2:])
    mask = (rows[:, None] >= height) | (columns >= width)  # (height, width)
    return padded, mask.expand(images.shape[0], -1, -1)


def export_onnx(
    model: SetPredictor, path: str | Path, size: tuple[int, int], *, dynamic: bool, opset: int
) -> None:
    """Writes the ONNX file of a model.

    Args:
        size: (height, width) of the images that the model is traced with, and if not `dynamic` the
            only one that the file takes.
        dynamic: whether the file takes batches of any number and, where the backbone allows it,
            images of any size.

    Raises:
        ExportError: models of the task are not exported, the exporter's packages are missing, or
            it gave up.
    """
    outputs = outputs_of(model)
    try:
        import onnxruntime  # noqa: F401  checks that it is installed
        import onnxscript  # noqa: F401  the exporter imports it
    except ImportError as error:
        raise ExportError(
            f"{error.name} is missing: pip install 'groupdetr_d2[export]', or onnx, onnxscript and "
            "onnxruntime"
        ) from error
    detector = Detector(model).cpu().eval()
    images = torch.randint(256, (2 if dynamic else 1, 3, *size)).float()
    shapes = {0: "batch", 2: "height", 3: "width"} if dynamic else None
    try:
        with torch.no_grad():
            torch.onnx.export(
                detector,
                (images,),
                str(path),
                input_names=["images"],
                output_names=list(outputs.names),
                dynamic_shapes=(shapes,),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds
        hint = "; --static fixes batch and image size" if dynamic else ""
        raise ExportError(
            f"the model cannot be exported{hint}. The exporter says: {str(error)[:2000]}"
        ) from error


def onnx_session(
    path: str | Path, names: Sequence[str]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Loads a file for the CPU; returns a function from images (B, 3, H, W) to its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(list(names), {"images": images})


def compare_with_file(
    model: SetPredictor,
    path: str | Path,
    run: Callable[[np.ndarray], list[np.ndarray]],
    images: np.ndarray,
    *,
    tolerance: Tolerance,
    lowest: float,
) -> float:
    """Runs images (B, 3, H, W) through PyTorch and an exported file on the CPU.

    In a two-stage model some ranks among the proposals are so close that rounding decides them, and
    with them which learned content a proposal gets: a few detections then differ.

    Args:
        run: gives the outputs of the file.
        lowest: share of the detections that have to be the same.

    Returns:
        the share of PyTorch's detections that the file gives too, up to the tolerance.

    Raises:
        ExportError: the share is below `lowest`, the number of detections differs, or the file
            gives numbers that are not finite.
    """
    with torch.no_grad():
        expected = [x.numpy() for x in Detector(model).eval()(torch.from_numpy(images))]
    found = run(images)
    if found[0].shape != expected[0].shape:
        numbers = found[0].shape[1], expected[0].shape[1]
        raise ExportError(f"{path} gives {numbers[0]} detections, the model {numbers[1]}")
    if not all(np.isfinite(x).all() for x in found):
        raise ExportError(f"{path} gives NaN or infinite numbers, and the model does not")
    are_equal = outputs_of(model).are_equal(expected, found, tolerance)  # (B, k, k)
    same = float(are_equal.any(-1).mean())
    if not same >= lowest:
        raise ExportError(
            f"{path} gives other detections than PyTorch on images of {images.shape}: only "
            f"{100 * same:.0f} % are the same"
        )
    return same


def compare_with_onnx(model: SetPredictor, path: str | Path, images: np.ndarray) -> float:
    """Compares a float32 file in onnxruntime with PyTorch, see :func:`compare_with_file`."""
    run = onnx_session(path, outputs_of(model).names)
    return compare_with_file(model, path, run, images, tolerance=Tolerance(), lowest=MIN_SAME)
