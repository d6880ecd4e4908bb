"""Converts an official checkpoint to this package's key names."""

from argparse import ArgumentParser, Namespace

from .arguments import add_overrides

SOURCES = (
    "conditional-detr",
    "dab-deformable-detr",
    "dab-detr",
    "deformable-detr",
    "dino",
    "dn-dab-deformable-detr",
    "dn-detr",
    "hf-conditional-detr",
    "hf-dab-detr",
    "hf-deformable-detr",
    "hf-mask2former",
    "mask2former",
    "petr",
    "petrv2",
    "sam-detr",
    "vovnet",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--source", required=True, choices=SOURCES)
    parser.add_argument("--config-file", default="", help="the model's yaml, if not the usual one")
    parser.add_argument("input", help="the official checkpoint")
    parser.add_argument("output", help="the checkpoint to write")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Writes the checkpoint; an error if a parameter of the model stays empty."""
    from ..checkpoint.converting import convert_file

    convert_file(args)
    return 0
