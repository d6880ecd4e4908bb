"""Plans the memory of a training step from the configuration alone: what fits into a GPU."""

from argparse import ArgumentParser, Namespace

from .arguments import ListOrOverrides, add_overrides


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--config-file", required=True, help="the model's yaml")
    parser.add_argument(
        "--gpu-memory", type=float, required=True, metavar="GIB", help="memory of a GPU"
    )
    parser.add_argument("--num-gpus", type=int, default=8, help="GPUs that train together")
    parser.add_argument(
        "--num-groups",
        action=ListOrOverrides,
        convert=int,
        default=[1, 5, 11],
        metavar="K",
        help="numbers of groups to plan (default: 1 5 11)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="the largest of the configuration's training, if not given",
    )
    parser.add_argument(
        "--batch-size", type=int, help="images of a GPU, SOLVER.IMS_PER_BATCH / --num-gpus"
    )
    parser.add_argument("--objects", type=int, default=7, help="targets of each image")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="whose kernels are counted"
    )
    parser.add_argument("--json", action="store_true", help="print the raw numbers, in bytes")
    add_overrides(parser)


def run(args: Namespace) -> int:
    """Prints a table, and the fastest combinations that fit."""
    from ..analysis.plan import plan

    return plan(args)
