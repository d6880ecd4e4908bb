"""The ladder of an export: AP, size and time of every exported file beside the model's own."""

import contextlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from tqdm import tqdm

from ..data.checks import check_registered
from ..errors import UserError
from ..modeling.meta_arch import SetPredictor
from ..tasks.image_input import ImageReader
from ..tasks.task import Task
from .onnx_export import onnx_session, outputs_of
from .openvino_export import openvino_session

MIB = 2**20


@dataclass(frozen=True)
class Step:
    """A line of the ladder: a model or a file of it, and what it reached."""

    name: str
    size: int | None  # of the file in bytes
    metrics: dict[str, float]
    seconds: float  # the median of an image, without reading and resizing


@dataclass(frozen=True)
class Candidate:
    """Something that detects.

    Attributes:
        size: of its file in bytes; None without one.
        load: returns the function from a model's input to Instances. It is called when its turn
            comes: the threads of a loaded file would take time from the others.
    """

    name: str
    size: int | None
    reader: ImageReader
    load: Callable[[], Callable[[dict], Instances]]


class FileDetector:
    """Detects with an exported file, as the model does: Detectron2's input in, Instances out.

    Args:
        run: from images (1, 3, H, W) float32 to the outputs of the file.
    """

    def __init__(self, model: SetPredictor, run: Callable[[np.ndarray], list[np.ndarray]]):
        self.run, self.outputs = run, outputs_of(model)

    def __call__(self, inputs: dict) -> Instances:
        """Detects on one input; returns detections in the image's own size."""
        image = inputs["image"][None].float().numpy()
        found = [x[0] for x in self.run(image)]
        original = (inputs["height"], inputs["width"])
        return self.outputs.instances(found, image.shape[2:], original)


def candidates_of(
    model: SetPredictor,
    paths: Sequence[Path],
    reader: ImageReader,
    static_size: tuple[int, int] | None,
) -> list[Candidate]:
    """Lists the model and the exported files.

    Args:
        reader: of the model; files of one input size have their own.
    """
    names = outputs_of(model).names
    fixed = None if static_size is None else T.Resize(static_size)
    own = (
        reader
        if fixed is None
        else ImageReader(fixed, image_format=reader.image_format, keeps_original=False)
    )

    def load(path: Path) -> FileDetector:
        return FileDetector(model, session_of(path, names))

    found = [Candidate("PyTorch", None, reader, lambda: lambda x: model([x])[0]["instances"])]
    return found + [Candidate(p.name, size_of(p), own, partial(load, p)) for p in paths]


def session_of(path: Path, names: Sequence[str]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Loads an ONNX or an OpenVINO file; returns a function from images to its outputs."""
    return (openvino_session if path.suffix == ".xml" else onnx_session)(path, names)


def size_of(path: Path) -> int:
    """Returns the bytes of a file; OpenVINO's has its weights in another one."""
    weights = path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0
    return path.stat().st_size + weights


def evaluate_candidates(
    cfg: CfgNode, task: Task, candidates: Sequence[Candidate], number: int | None
) -> list[Step]:
    """Evaluates all of them on the first test set, one after another.

    Args:
        number: of images, the first ones; all if not given.

    Raises:
        UserError: there is no test set.
    """
    if not cfg.DATASETS.TEST:
        raise UserError(
            "--evaluate has no test set: name one, DATASETS.TEST \"('name',)\" or "
            "DATASETS.CUSTOM.VAL_JSON and VAL_IMAGES"
        )
    name = cfg.DATASETS.TEST[0]
    check_registered([name])
    task.data.check_classes(cfg, (name,))
    images = list(task.data.images_of(name, is_evaluated=True)[:number])
    ids = None if number is None else [image["image_id"] for image in images]
    return [
        evaluate_one(x, images, task.build_evaluator(name, None), ids, task) for x in candidates
    ]


@torch.no_grad()
def evaluate_one(
    candidate: Candidate,
    images: Sequence[dict],
    evaluator: DatasetEvaluator,
    ids: Sequence | None,
    task: Task,
) -> Step:
    """Evaluates one candidate on images.

    Args:
        ids: of the images, where they are not the whole set.
    """
    detect, seconds = candidate.load(), []
    evaluator.reset()
    for image in tqdm(images, desc=candidate.name, unit="image", disable=None):
        _, inputs = candidate.reader(image["file_name"])
        start = time.perf_counter()
        found = detect(inputs)
        seconds.append(time.perf_counter() - start)
        evaluator.process([{**image, **inputs}], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = task.metrics_of(evaluator.evaluate(img_ids=ids))
    median = statistics.median(seconds) if seconds else float("nan")
    return Step(candidate.name, candidate.size, metrics, median)


def ladder_table(steps: Sequence[Step], metrics: Sequence[str]) -> str:
    """Writes the ladder as a table; the first metric is also given against the first step."""
    first, width = metrics[0], max(len(step.name) for step in steps)
    heads = [*metrics, "difference", "MiB", "ms per image"]
    lines = [" ".join([" " * width, *(f"{head:>12}" for head in heads)])]
    for step in steps:
        values = [f"{step.metrics[name]:.2f}" for name in metrics]
        change = step.metrics[first] - steps[0].metrics[first]
        size = "" if step.size is None else f"{step.size / MIB:.1f}"
        cells = [*values, f"{change:+.2f}", size, f"{1000 * step.seconds:.1f}"]
        lines.append(" ".join([step.name.ljust(width), *(f"{cell:>12}" for cell in cells)]))
    return "\n".join(lines)
