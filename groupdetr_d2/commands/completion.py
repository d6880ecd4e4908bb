"""Prints the completion script of a shell: eval "$(groupdetr-d2 completion bash)"."""

import sys
from argparse import ArgumentParser, Namespace

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("shell", choices=SHELLS)


def run(args: Namespace) -> int:
    """Prints the script."""
    import shtab

    from . import build_parser

    sys.stdout.write(shtab.complete(build_parser(), args.shell) + "\n")
    return 0
