"""Exports a trained model to ONNX, and compares the file's results with PyTorch's."""

from argparse import ArgumentParser, Namespace
from typing import Any

from ..errors import UserError
from .arguments import ListOrOverrides, add_overrides

OPSET = 20


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--weights", default="", help="a checkpoint; random weights if not given")
    parser.add_argument("--config-file", default="", help="if the checkpoint carries none")
    parser.add_argument("--out", required=True, help="the .onnx file to write")
    parser.add_argument(
        "--precision",
        action=ListOrOverrides,
        default=["fp32"],
        metavar="P",
        help="fp32 (the default), fp16, int8; of several, names of the files say which is which",
    )
    parser.add_argument(
        "--openvino", action="store_true", help="OpenVINO files beside them, of the same name"
    )
    parser.add_argument("--image-size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--static", action="store_true", help="one image of just that size")
    parser.add_argument("--opset", type=int, default=OPSET, help=f"default: {OPSET}")
    parser.add_argument("--images", default="", help="an image or a folder to compare on, too")
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="a table of AP, size and time of the model and its files, on the first test set",
    )
    parser.add_argument(
        "--num-images", type=int, metavar="N", help="of --evaluate, the first ones only"
    )
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Writes the files and says what is inside."""
    if not args.weights and not args.config_file:
        raise UserError("export needs --weights, --config-file or both")
    from ..inference.exporting import export

    export(args, register_test_set if args.evaluate else None)
    return 0


def register_test_set(cfg: Any) -> None:
    """Registers the test sets of a configuration; its training sets may not be on this machine."""
    from ..engine.setup import settle_config

    cfg.DATASETS.TRAIN = ()
    cfg.DATASETS.CUSTOM.TRAIN_JSON = cfg.DATASETS.CUSTOM.TRAIN_IMAGES = ""
    settle_config(cfg)
