"""Describes a model: task, groups, parameters, FLOPs, image sizes, schedule and data sets."""

from argparse import ArgumentParser, Namespace

from ..errors import UserError
from .arguments import add_overrides


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--config-file", default="", help="the model's yaml")
    parser.add_argument("--weights", default="", help="a checkpoint of train_net.py instead")
    parser.add_argument("--no-flops", action="store_true", help="leave out what takes seconds")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Prints the description."""
    if bool(args.config_file) == bool(args.weights):
        raise UserError("info needs one of --config-file and --weights")
    from ..analysis.model_info import info

    return info(args)
