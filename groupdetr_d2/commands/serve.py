"""Serves a page on this machine: an image in, detections out; threshold and group can be moved."""

from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--max-megabytes", type=float, default=20, help="of an uploaded file")
    parser.add_argument("--max-megapixels", type=float, default=50, help="of an uploaded image")


def run(args: Namespace) -> int:
    """Serves until it is interrupted."""
    from ..inference.page import serve

    serve(args)
    return 0
