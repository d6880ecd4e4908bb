"""Exports a trained model to ONNX, and compares the file's results with PyTorch's."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from ..checkpoint import GroupCheckpointer
from ..data.image_file import read_bgr
from ..engine.launch import report_errors
from ..engine.setup import build_config, override
from .onnx_export import OPSET, compare_with_onnx, export_onnx
from .prediction import list_images
from .predictor import config_of, read_checkpoint

INSIDE = """\
inputs   images: float32 (batch, 3, height, width), {order}, 0 .. 255, all of one size, no padding
outputs  boxes: (batch, {k}, 4) x1 y1 x2 y2 in pixels of the input; scores, labels: (batch, {k})
inside   normalisation, the primary group of queries, sigmoid, the {k} best (query, class) pairs
outside  resizing (shorter side {size}), a threshold for scores; there is no NMS to be done
"""


def main(argv: list[str]) -> int:
    """Writes --out and says what is inside."""
    parser = argparse.ArgumentParser(prog="groupdetr_d2 export", description=__doc__)
    parser.add_argument("--weights", default="", help="a checkpoint; random weights if not given")
    parser.add_argument("--config-file", default="", help="if the checkpoint carries none")
    parser.add_argument("--out", required=True, help="the .onnx file to write")
    parser.add_argument("--image-size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--static", action="store_true", help="one image of just that size")
    parser.add_argument("--opset", type=int, default=OPSET)
    parser.add_argument("--images", default="", help="an image or a folder to compare on, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides: KEY VALUE ...")
    args = parser.parse_args(argv)
    if not args.weights and not args.config_file:
        parser.error("give --weights, --config-file or both")
    with report_errors():
        run(args)
    return 0


def run(args: argparse.Namespace) -> None:
    """Builds, exports, compares."""
    cfg = load_config(args)
    model = build_model(cfg).eval()
    if args.weights:
        GroupCheckpointer(model).load(args.weights, checkpointables=[])
    size = tuple(args.image_size)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    export_onnx(model, args.out, size, dynamic=not args.static, opset=args.opset)
    sys.stdout.write(
        f"{args.out}: opset {args.opset}, {Path(args.out).stat().st_size / 2**20:.0f} MiB\n"
        + INSIDE.format(
            order=cfg.INPUT.FORMAT, k=model.detections_per_image, size=cfg.INPUT.MIN_SIZE_TEST
        )
    )
    for name, images in inputs_to_compare(args, size, cfg.INPUT.FORMAT):
        same = compare_with_onnx(model, args.out, images)
        sys.stdout.write(
            f"onnxruntime on {name} {tuple(images.shape)}: {100 * same:.1f} % of the detections "
            "are PyTorch's\n"
        )


def load_config(args: argparse.Namespace):
    """The yaml's configuration, or the one that the checkpoint carries; on the CPU."""
    if args.config_file:
        cfg = build_config(args.config_file, args.opts)
    else:
        cfg = config_of(read_checkpoint(args.weights))
        override(cfg, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def inputs_to_compare(args: argparse.Namespace, size: tuple[int, int], image_format: str):
    """Yields a name and images: random ones, of other sizes too if allowed, and those given."""
    generator = np.random.default_rng(0)
    height, width = size
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
            resize = T.ResizeShortestEdge(min(size), max(size))
            image = resize.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        yield path.name, tensor[None].float().numpy()
