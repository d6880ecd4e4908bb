"""Arguments that several commands have."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

SECTIONS = "MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL"
KEY = re.compile(
    rf"(({SECTIONS})(\.[A-Z0-9_]+)+|SEED|OUTPUT_DIR|VIS_PERIOD|CUDNN_BENCHMARK)(=.*)?$"
)


CHOICE = re.compile(r"(.*invalid choice: '(.*?)') \(choose from (.*)\)$")


class Parser(argparse.ArgumentParser):
    """A parser that proposes the nearest word where one of several is mistyped."""

    def print_help(self, file: Any = None) -> None:
        """Writes the help; argparse itself would not notice that nobody reads it."""
        (file or sys.stdout).write(self.format_help())

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        match = CHOICE.match(message)
        words = re.findall(r"[^\s',]+", match[3]) if match else []
        near = difflib.get_close_matches(match[2], words, n=2) if match else []
        if match and near:
            message = f"{match[1]}; did you mean {' or '.join(near)}?"
        if message.startswith("unrecognized") and any(map(KEY.match, message.split())):
            message += "; KEY VALUE pairs stand right behind the images, with --out ahead"
        super().error(message)


class ListOrOverrides(argparse.Action):
    """A list of values that ends where a configuration key begins.

    Overrides stand at the end of a command, KEY VALUE ...; those behind the list go to `opts`.

    Args:
        convert: makes a value from a word.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **named: Any):
        self.convert: Callable[[str], Any] = named.pop("convert", str)
        super().__init__(option_strings, dest, nargs="+", **named)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Stores the values, and the overrides behind them."""
        words = list(values or ())
        end = next((i for i, word in enumerate(words) if KEY.match(word)), len(words))
        if not end:
            raise argparse.ArgumentError(self, "expected at least one value")
        try:
            setattr(namespace, self.dest, [self.convert(word) for word in words[:end]])
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        earlier = getattr(namespace, "opts_behind_list", [])
        namespace.opts_behind_list = [*earlier, *words[end:]]


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds `opts`, the overrides at the end of a command."""
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides: KEY VALUE ...")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The overrides of a command, those behind a list of values included."""
    return [*getattr(args, "opts_behind_list", ()), *(getattr(args, "opts", None) or ())]
