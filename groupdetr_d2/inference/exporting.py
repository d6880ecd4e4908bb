"""The work of `export`: from a checkpoint to files that were compared with PyTorch."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from ..checkpoint import GroupCheckpointer
from ..checkpoint.restoring import restore
from ..checkpoint.run_info import class_names
from ..checkpoint.structure import check_filled
from ..config import build_config
from ..data.image_file import channels_first, read_bgr
from ..data.resize import ResizeShortestSide
from ..errors import UserError
from ..modeling.meta_arch import SetPredictor
from ..tasks.image_input import ImageReader, build_image_reader
from ..tasks.task import Tolerance
from .export_contract import Contract, build_contract, write_metadata
from .export_ladder import (
    MIB,
    candidates_of,
    evaluate_candidates,
    ladder_table,
    session_of,
    size_of,
)
from .onnx_export import MIN_SAME, compare_with_file, export_onnx, outputs_of
from .openvino_export import import_openvino, write_openvino
from .prediction import list_images

Settle = Callable[[CfgNode], None]
# what counts as the same detection; in float32 nearly all have to be, otherwise the share is said
TOLERANCES = {
    "fp32": Tolerance(),
    "fp16": Tolerance(pixels=2.0, score=0.01, overlap=0.9),
    "int8": Tolerance(pixels=8.0, score=0.1, overlap=0.75),
}
INSIDE = """\
input    images: float32 (batch, 3, height, width), {order}, 0 .. 255, all of one size, no padding
outputs  {outputs}
inside   normalisation, the primary group of queries, scores, the best (query, class) pairs
outside  resizing ({resize}), a threshold for scores ({threshold:.2f}); no NMS
all of it stands in the file's metadata; docs/export.md explains it
"""


@dataclass(frozen=True)
class ModelToExport:
    """A model, the configuration that it was built from, and its contract."""

    cfg: CfgNode
    model: SetPredictor
    contract: Contract


def export(args: argparse.Namespace, settle: Settle | None = None) -> None:
    """Exports a model, says what is inside, compares, and evaluates if that is asked for.

    Args:
        settle: registers the test set of a configuration; for --evaluate.

    Raises:
        UserError: an argument is wrong.
        ExportError: the model cannot be exported, or a file gives other detections.
    """
    check_arguments(args)
    own = load_model(args, settle)
    check_is_writable(Path(args.out))
    paths = write_files(own, args)
    say_contents(own, paths, args.opset)
    compare_files(own, paths, args)
    if args.evaluate:
        evaluate_files(own, paths, args)


def check_arguments(args: argparse.Namespace) -> None:
    """Checks the precisions and the name of the file before the model is built.

    Raises:
        UserError: naming the argument.
    """
    for precision in args.precision:
        if precision not in TOLERANCES:
            known = ", ".join(TOLERANCES)
            raise UserError(f"--precision {precision} is unknown; it can be {known}")
    if args.openvino:
        import_openvino()
        if Path(args.out).suffix != ".onnx":
            raise UserError(
                f"--out {args.out} has to end in .onnx: with --openvino an .xml and a .bin of the "
                "same name stand beside it"
            )
    if args.num_images is not None and args.num_images < 1:
        raise UserError(f"--num-images is {args.num_images}; it has to be 1 or more")
    if min(args.image_size) < 1:
        raise UserError(f"--image-size is {args.image_size}; it has to be a height and a width")


def check_is_writable(path: Path) -> None:
    """Checks that a file can be written, and makes its folder.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; it has to be a file such as {path}/model.onnx")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--out {path} cannot be written to ({error.strerror})") from error


def load_model(args: argparse.Namespace, settle: Settle | None = None) -> ModelToExport:
    """Builds the model of the yaml, or of the configuration that the checkpoint carries."""
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    size = tuple(args.image_size) if args.static else None
    if not args.config_file:
        own = restore(args.weights, opts, settle=settle)
        outputs_of(own.model)
        contract = build_contract(own.cfg, own.model, own.classes, own.threshold, size)
        return ModelToExport(own.cfg, own.model, contract)
    cfg = build_config(args.config_file, opts)
    if settle is not None:
        settle(cfg)
    model = build_model(cfg).eval()
    if args.weights:
        checkpointer = GroupCheckpointer(model)
        checkpointer.load(args.weights, checkpointables=[])
        check_filled(checkpointer.states, model.state_dict(), args.weights)
    return ModelToExport(cfg, model, build_contract(cfg, model, class_names(cfg), None, size))


def write_files(own: ModelToExport, args: argparse.Namespace) -> dict[Path, str]:
    """Writes the files of every precision, each whole; returns precisions by their paths."""
    out, size = Path(args.out), tuple(args.image_size)
    wanted, written = list(dict.fromkeys(args.precision)), {}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".unfinished-") as folder:
        made = {precision: Path(folder, f"{precision}.onnx") for precision in TOLERANCES}
        export_onnx(own.model, made["fp32"], size, dynamic=not args.static, opset=args.opset)
        from .onnx_precision import CONVERTERS  # needs onnx, which is an extra

        for precision in wanted:
            if precision in CONVERTERS:
                CONVERTERS[precision](made["fp32"], made[precision])
        for precision in wanted:
            path = out if len(wanted) == 1 else with_precision(out, precision)
            metadata = own.contract.metadata(precision)
            write_metadata(made[precision], metadata)
            if args.openvino:
                write_openvino(made[precision], path.with_suffix(".xml"), metadata)
                written[path.with_suffix(".xml")] = precision
            os.replace(made[precision], path)
            written[path] = precision
    return dict(sorted(written.items(), key=lambda x: (x[0].suffix != ".onnx", wanted.index(x[1]))))


def with_precision(path: Path, precision: str) -> Path:
    """Returns the name of one of several files: model.onnx, model.fp16.onnx, model.int8.onnx."""
    return path if precision == "fp32" else path.with_suffix(f".{precision}{path.suffix}")


def say_contents(own: ModelToExport, paths: dict[Path, str], opset: int) -> None:
    """Says what was written, and in short what the contract says."""
    for path, precision in paths.items():
        kind = "OpenVINO" if path.suffix == ".xml" else f"opset {opset}"
        sys.stdout.write(f"{path}: {precision}, {kind}, {size_of(path) / MIB:.1f} MiB\n")
    tensors = [
        f"{x['name']} {x['dtype']} ({', '.join(str(n) for n in x['shape'])}): {x['meaning']}"
        for x in own.contract.outputs
    ]
    sys.stdout.write(
        INSIDE.format(
            order=own.contract.channels,
            outputs="\n         ".join(tensors),
            resize=resize_in_words(own.contract.resize),
            threshold=own.contract.threshold,
        )
    )


def resize_in_words(rule: dict) -> str:
    """Says the rule by which an image becomes the input."""
    if rule["rule"] == "exact":
        return f"to {rule['height']} x {rule['width']}, whatever the image's shape"
    if not rule["min_size"]:
        return "none"
    return f"shorter side to {rule['min_size']}, longer side at most {rule['max_size']}"


def compare_files(own: ModelToExport, paths: dict[Path, str], args: argparse.Namespace) -> None:
    """Compares the detections of every file with PyTorch's, and says how many are the same.

    Raises:
        ExportError: a float32 file gives other detections, or any file numbers without end.
    """
    inputs = list(inputs_to_compare(args, own.cfg.INPUT.FORMAT))
    for path, precision in paths.items():
        run = session_of(path, outputs_of(own.model).names)
        lowest = MIN_SAME if precision == "fp32" else 0.0
        runtime = "OpenVINO" if path.suffix == ".xml" else "onnxruntime"
        for name, images in inputs:
            same = compare_with_file(
                own.model, path, run, images, tolerance=TOLERANCES[precision], lowest=lowest
            )
            sys.stdout.write(
                f"{path.name}: {runtime} on {name} {tuple(images.shape)}: {100 * same:.1f} % of "
                "the detections are PyTorch's\n"
            )


def inputs_to_compare(
    args: argparse.Namespace, image_format: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a name and images: random ones, of other sizes too if allowed, and those given."""
    generator = np.random.default_rng(0)
    height, width = args.image_size
    shapes = [(1, 3, height, width)]
    if not args.static:
        shapes.append((3, 3, height + 32, max(width - 37, 64)))
    for shape in shapes:
        yield "random images", generator.integers(0, 256, shape).astype(np.float32)
    for path in list_images([args.images] if args.images else []):
        image = read_bgr(path)
        image = image if image_format == "BGR" else image[:, :, ::-1]
        if args.static:
            image = T.ResizeTransform(*image.shape[:2], height, width).apply_image(image)
        else:
            resize = ResizeShortestSide(min(height, width), max(height, width))
            image = resize.get_transform(image).apply_image(image)
        yield path.name, channels_first(image)[None].float().numpy()


def evaluate_files(own: ModelToExport, paths: dict[Path, str], args: argparse.Namespace) -> None:
    """Evaluates the model and its files on the test set, and prints the table."""
    static_size = tuple(args.image_size) if args.static else None
    candidates = candidates_of(own.model, list(paths), build_plain_reader(own.cfg), static_size)
    steps = evaluate_candidates(own.cfg, own.model.task, candidates, args.num_images)
    metrics = [name.partition("/")[2] for name in own.model.task.compared]
    sys.stdout.write(f"on {own.cfg.DATASETS.TEST[0]}:\n{ladder_table(steps, metrics)}\n")


def build_plain_reader(cfg: CfgNode) -> ImageReader:
    """Builds the reader of images without test-time augmentation, which files do not have."""
    reader = build_image_reader(cfg)
    reader.keeps_original = False
    return reader
