"""Draws the paper's tables and figures from checkpoints, runs and configurations.

Every analysis writes a picture, a table as CSV and a line of text into --out.
"""

import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .arguments import ListOrOverrides, add_overrides

SIZE = ("H", "W")


def add_weights(parser: ArgumentParser, num_images: int | None = None) -> None:
    """Adds --weights and --num-images."""
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument("--num-images", type=int, default=num_images, help="the first ones only")


def add_stability(parser: ArgumentParser) -> None:
    """Adds the arguments of `stability`."""
    parser.add_argument(
        "--run", action="append", required=True, metavar="LABEL=FOLDER", help="a training's folder"
    )
    parser.add_argument("--num-images", type=int, help="the first ones only")


def add_convergence(parser: ArgumentParser) -> None:
    """Adds the arguments of `convergence`."""
    parser.add_argument(
        "--runs",
        action=ListOrOverrides,
        required=True,
        metavar="[LABEL=]PATH",
        help="trainings' folders (those of one label are its seeds), or a results file of `sweep`, "
        "of which LABEL selects runs",
    )
    parser.add_argument(
        "--equal-time", action="store_true", help="draw AP over seconds of training instead"
    )
    parser.add_argument("--pairs", action="store_true", help="one colour per pair of runs, in turn")


def add_configs(parser: ArgumentParser) -> None:
    """Adds --config-file and --num-groups, of several models."""
    parser.add_argument(
        "--config-file", action=ListOrOverrides, required=True, metavar="[LABEL=]FILE"
    )
    parser.add_argument(
        "--num-groups", action=ListOrOverrides, convert=int, default=[1, 11], metavar="K"
    )


def add_memory(parser: ArgumentParser) -> None:
    """Adds the arguments of `memory`."""
    add_configs(parser)
    parser.add_argument("--image-size", type=int, nargs=2, default=[480, 640], metavar=SIZE)
    parser.add_argument("--batch-size", type=int, default=2, help="images of a step")


def add_time(parser: ArgumentParser) -> None:
    """Adds the arguments of `time`."""
    add_configs(parser)
    parser.add_argument("--image-size", type=int, nargs=2, default=[800, 1066], metavar=SIZE)
    parser.add_argument("--batch-size", type=int, default=2, help="images of a process")
    parser.add_argument("--processes", type=int, default=1, help="that share an epoch evenly")
    parser.add_argument(
        "--images", type=int, default=118287, help="of an epoch; COCO's if not given"
    )
    parser.add_argument("--steps", type=int, default=3, help="measured steps, after two more")


def add_sweep(parser: ArgumentParser) -> None:
    """Adds the arguments of `sweep`."""
    parser.add_argument("--config-file", help="with --key and --values")
    parser.add_argument("--key", help="the configuration key to vary")
    parser.add_argument("--values", action=ListOrOverrides, help="its values")
    parser.add_argument(
        "--run", action="append", default=[], metavar="'LABEL: CONFIG [KEY VALUE ...]'"
    )
    parser.add_argument("--seeds", action=ListOrOverrides, convert=int, default=[0])
    parser.add_argument("--results", required=True, help="JSON file that results are added to")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, on a CPU")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of each training")
    parser.add_argument(
        "--minutes", type=float, help="stop then; what is running is resumed the next time"
    )


def add_attention(parser: ArgumentParser) -> None:
    """Adds the arguments of `attention`."""
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument("--image", required=True, help="the image to look at")
    parser.add_argument("--layer", type=int, default=-1, help="decoder layer; -1 is the last")
    parser.add_argument("--queries", type=int, default=6, help="number of the best queries drawn")


def add_duplicates(parser: ArgumentParser) -> None:
    """Adds the arguments of `duplicates`."""
    parser.add_argument(
        "--weights",
        action=ListOrOverrides,
        required=True,
        metavar="[LABEL=]FILE",
        help="checkpoints",
    )
    parser.add_argument("--num-images", type=int, help="the first ones only")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score that counts")


@dataclass(frozen=True)
class Analysis:
    """One analysis: its module in `groupdetr_d2.analysis`, its help and its arguments."""

    module: str
    help: str
    add_arguments: Callable[[ArgumentParser], None]


ANALYSES = {
    "groups": Analysis(
        "group_ap",
        "AP of every query group alone, and of all of them fused (Figure 4)",
        add_weights,
    ),
    "stability": Analysis(
        "stability", "how much the matching changes between checkpoints (Figure 5)", add_stability
    ),
    "queries": Analysis(
        "query_figure",
        "where the groups' queries for the same object are (Figure 3)",
        partial(add_weights, num_images=6),
    ),
    "convergence": Analysis(
        "convergence", "AP over epochs of several runs (Figure 1)", add_convergence
    ),
    "memory": Analysis(
        "memory", "training memory with attention maps and without (Figure 7)", add_memory
    ),
    "time": Analysis("training_time", "hours of an epoch and their ratio (Table 2)", add_time),
    "sweep": Analysis(
        "sweep", "trains a list of settings, resumably, and plots AP (Figures 9, 10)", add_sweep
    ),
    "attention": Analysis(
        "attention_figure", "where the decoder's queries look on an image", add_attention
    ),
    "duplicates": Analysis(
        "duplicates", "boxes per object, and what NMS would add (Table 7)", add_duplicates
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds a command for each analysis."""
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, analysis in ANALYSES.items():
        command = names.add_parser(name, help=analysis.help, description=analysis.help)
        analysis.add_arguments(command)
        command.add_argument("--out", default=f"output/analysis/{name}", help="folder to write")
        add_overrides(command)


def run(args: Namespace) -> int:
    """Runs one analysis."""
    from ..analysis.output import write_analysis

    module = importlib.import_module(f"groupdetr_d2.analysis.{ANALYSES[args.name].module}")
    write_analysis(module.run, args)
    return 0
