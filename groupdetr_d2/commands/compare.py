"""Compares trainings, also running ones: curves, best result, and the keys that differ."""

from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("folders", nargs="+", help="output folders of train_net.py")
    parser.add_argument("--out", default="comparison", help="folder for what is written")


def run(args: Namespace) -> int:
    """Prints a table; writes compare.png and compare.csv."""
    from ..analysis.compare import compare

    return compare(args.folders, args.out)
