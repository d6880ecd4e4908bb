"""Measures a training step at several numbers of groups: time, its shares, memory, FLOPs."""

from argparse import ArgumentParser, Namespace

from .arguments import ListOrOverrides, add_overrides


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--config-file", required=True, help="the model's yaml")
    parser.add_argument(
        "--num-groups",
        action=ListOrOverrides,
        convert=int,
        default=[1, 11],
        metavar="K",
        help="numbers of groups to measure (default: 1 11)",
    )
    parser.add_argument("--image-size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=2, help="images of a step")
    parser.add_argument("--objects", type=int, default=7, help="targets of each image")
    parser.add_argument("--steps", type=int, default=7, help="measured steps of a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="times that all numbers of groups are measured in turn (default: 1)",
    )
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one")
    parser.add_argument("--evaluate", action="store_true", help="measure inference instead")
    parser.add_argument("--json", action="store_true", help="print the raw numbers")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Prints a table."""
    from ..analysis.benchmark import benchmark

    return benchmark(args)
