"""Trains and evaluates; what train_net.py does, wherever the package is installed."""

import argparse

from ..engine.launch import launch
from ..engine.main import build_parser
from ..engine.main import main as train


def main(argv: list[str]) -> int:
    """Takes train_net.py's arguments."""
    parser = build_parser()
    parser.prog = "groupdetr_d2 train"
    # Detectron2's examples name the script that they belong to
    parser.epilog, parser.formatter_class = None, argparse.HelpFormatter
    launch(train, parser.parse_args(argv))
    return 0
