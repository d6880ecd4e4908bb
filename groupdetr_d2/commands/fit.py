"""Makes a checkpoint for other classes, such as COCO's of Objects365's, for all groups alike."""

import sys
from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("input", help="a checkpoint of a training, or hf://owner/name")
    parser.add_argument("output", help="the checkpoint to write; fine-tuning starts from it")
    parser.add_argument(
        "--classes",
        required=True,
        metavar="CLASSES",
        help="objects365-to-coco, or a JSON file: the checkpoint's class, or null, by new class",
    )


def run(args: Namespace) -> int:
    """Writes the checkpoint and prints which rows each class takes; returns 0."""
    from ..checkpoint.class_fitting import fit_file

    sys.stdout.write(fit_file(args.input, args.output, args.classes))
    return 0
