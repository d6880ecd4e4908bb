"""Exports a trained model to ONNX, and compares the file's results with PyTorch's."""

from argparse import ArgumentParser, Namespace

from ..errors import UserError
from .arguments import add_overrides

OPSET = 20


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--weights", default="", help="a checkpoint; random weights if not given")
    parser.add_argument("--config-file", default="", help="if the checkpoint carries none")
    parser.add_argument("--out", required=True, help="the .onnx file to write")
    parser.add_argument("--image-size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--static", action="store_true", help="one image of just that size")
    parser.add_argument("--opset", type=int, default=OPSET, help=f"default: {OPSET}")
    parser.add_argument("--images", default="", help="an image or a folder to compare on, too")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Writes the file and says what is inside."""
    if not args.weights and not args.config_file:
        raise UserError("export needs --weights, --config-file or both")
    from ..inference.exporting import export

    export(args)
    return 0
