"""Lists the yamls with task, groups, epochs and the paper's figures."""

import sys
from argparse import ArgumentParser, Namespace

from ..config.listing import list_configs
from ..errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("words", nargs="*", help="list those alone whose names have all of these")


def run(args: Namespace) -> int:
    """Prints a table."""
    from tabulate import tabulate

    found = list_configs(args.words)
    if not found:
        raise UserError(f"no yaml has {' and '.join(args.words)} in its name")
    rows = [
        {
            "--config-file": x.name,
            "task": x.task,
            "K": x.num_groups,
            "epochs": "-" if x.epochs is None else f"{x.epochs:.4g}",
            "paper": f"{x.paper} ({x.table})" if x.paper else "-",
        }
        for x in found
    ]
    sys.stdout.write(tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True))
    sys.stdout.write(
        "\n\n`info --config-file FILE` says more of one. The figures are the Group DETR paper's, "
        "not those of checkpoints of ours.\n"
    )
    return 0
