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
    "vit",
    "vovnet",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--source",
        choices=SOURCES,
        help="the code that wrote the file; models of Hugging Face say it themselves",
    )
    parser.add_argument("--config-file", default="", help="the model's yaml, if not the usual one")
    parser.add_argument(
        "input",
        help="the official checkpoint, or a model of transformers, hf://owner/name or its folder",
    )
    parser.add_argument("output", help="the checkpoint to write")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Writes the checkpoint; an error if a parameter of the model stays empty."""
    from ..checkpoint.converting import convert_file, convert_vit
    from ..checkpoint.hub_weights import convert_described

    if args.source == "vit":
        convert_vit(args)
    elif args.source:
        convert_file(args)
    else:
        convert_described(args)
    return 0
