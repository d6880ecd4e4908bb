"""The commands of `groupdetr-d2` and `python -m groupdetr_d2`, one module each.

A module has a docstring, whose first line is its help, and two functions: ``add_arguments(parser)``
and ``run(args)``, which returns the exit code. Modules import what is heavy (PyTorch, Detectron2)
when they run, so that listing commands and printing their help is quick.
"""

import argparse
import importlib
import os
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from ..config.files import check_config_file, find_config
from ..engine.reporting import report_errors
from .arguments import Parser, overrides_of
from .env import NEEDED

# what the libraries below say to their developers; a user of this package cannot act on it
SILENCED = (FutureWarning, DeprecationWarning)


def commands_by_name() -> dict[str, ModuleType]:
    """The modules of the commands, by the name that a user types."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "arguments")
    modules = (importlib.import_module(f"{__name__}.{name}") for name in names)
    return {name.replace("_", "-"): module for name, module in zip(names, modules, strict=True)}


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands."""
    parser = Parser(
        prog="groupdetr-d2", description="DETR training with groups of queries (Group DETR)."
    )
    names = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, module in commands_by_name().items():
        text = module.__doc__ or ""
        command = names.add_parser(name, help=text.splitlines()[0], description=text)
        module.add_arguments(command)
        command.set_defaults(execute=module.run)
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command, or lists all without one; returns the exit code.

    Args:
        argv: the command and its arguments, those of the process if not given.
    """
    silence_libraries()
    with report_errors():
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a reader that has gone is no traceback
    return 1


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    args.opts = overrides_of(args)
    config_file = getattr(args, "config_file", None)
    if isinstance(config_file, str):
        check_config_file(find_config(config_file))  # before anything that takes seconds
    try:
        return args.execute(args)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {module for module, *_ in NEEDED}:
            raise
        sys.exit(
            f"error: {error}. `python -m groupdetr_d2 env` says what is missing and how to mend it"
        )


def silence_libraries() -> None:
    """Turns off warnings that only a library's developers can act on, in child processes too.

    PYTHONWARNINGS and python's -W keep their say.
    """
    if sys.warnoptions:
        return
    for category in SILENCED:
        warnings.simplefilter("ignore", category)
    os.environ["PYTHONWARNINGS"] = ",".join(f"ignore::{c.__name__}" for c in SILENCED)
