"""The work of `export`: from a checkpoint to an ONNX file that was compared with PyTorch."""

import argparse
import sys
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from ..checkpoint import GroupCheckpointer
from ..checkpoint.restoring import restore
from ..checkpoint.structure import check_filled
from ..config import build_config
from ..data.image_file import channels_first, read_bgr
from ..data.resize import ResizeShortestSide
from ..modeling.meta_arch import SetPredictor
from .onnx_export import compare_with_onnx, export_onnx, outputs_of
from .prediction import list_images

INSIDE = """\
inputs   images: float32 (batch, 3, height, width), {order}, 0 .. 255, all of one size, no padding
outputs  {outputs}
inside   normalisation, the primary group of queries, scores, the {k} best (query, class) pairs
outside  resizing (shorter side {size}), a threshold for scores; there is no NMS to be done
"""


def export(args: argparse.Namespace) -> None:
    """Exports a model, says what is inside, and compares with onnxruntime."""
    cfg, model = load_model(args)
    outputs = outputs_of(model)
    size = tuple(args.image_size)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    export_onnx(model, args.out, size, dynamic=not args.static, opset=args.opset)
    sys.stdout.write(
        f"{args.out}: opset {args.opset}, {Path(args.out).stat().st_size / 2**20:.0f} MiB\n"
        + INSIDE.format(
            order=cfg.INPUT.FORMAT,
            outputs=outputs.description.format(k=model.detections_per_image),
            k=model.detections_per_image,
            size=cfg.INPUT.MIN_SIZE_TEST,
        )
    )
    for name, images in inputs_to_compare(args, size, cfg.INPUT.FORMAT):
        same = compare_with_onnx(model, args.out, images)
        sys.stdout.write(
            f"onnxruntime on {name} {tuple(images.shape)}: {100 * same:.1f} % of the detections "
            "are PyTorch's\n"
        )


def load_model(args: argparse.Namespace) -> tuple[CfgNode, SetPredictor]:
    """Builds the model of the yaml, or of the configuration that the checkpoint carries."""
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    if not args.config_file:
        restored = restore(args.weights, opts)
        return restored.cfg, restored.model
    cfg = build_config(args.config_file, opts)
    model = build_model(cfg).eval()
    if args.weights:
        checkpointer = GroupCheckpointer(model)
        checkpointer.load(args.weights, checkpointables=[])
        check_filled(checkpointer.states, model.state_dict(), args.weights)
    return cfg, model


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
            resize = ResizeShortestSide(min(size), max(size))
            image = resize.get_transform(image).apply_image(image)
        yield path.name, channels_first(image)[None].float().numpy()
