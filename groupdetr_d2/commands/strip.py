"""Makes a checkpoint small: the primary group alone, no optimizer, the same results."""

from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("input", help="a checkpoint of train_net.py")
    parser.add_argument("output", help="the checkpoint to write; inference and fine-tuning take it")


def run(args: Namespace) -> int:
    """Writes the checkpoint and says how large both are."""
    from ..checkpoint.stripping import strip_file

    strip_file(args.input, args.output)
    return 0
