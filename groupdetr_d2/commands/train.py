"""Trains and evaluates; what train_net.py does, wherever the package is installed."""

import os
import sys
from argparse import REMAINDER, ArgumentParser, Namespace

from ..config.files import find_config
from ..config.listing import read_yaml

# of one's own data set: each becomes a key of DATASETS.CUSTOM
DATA_FLAGS = ("train_json", "train_images", "val_json", "val_images")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds Detectron2's arguments and those of one's own data."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="the model's yaml")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print configuration, data, schedule, learning rates and memory, and train nothing",
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of this machine")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all")
    parser.add_argument("--machine-rank", type=int, default=0, help="the number of this machine")
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{default_port()}",
        help="address of the first machine, for several",
    )
    for flag in DATA_FLAGS:
        what = "COCO-format annotations" if flag.endswith("json") else "folder of the images"
        text = f"{what} of your own {flag.split('_')[0]} set"
        parser.add_argument(f"--{flag.replace('_', '-')}", default="", metavar="PATH", help=text)
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let MODEL.WEIGHTS run code when it is read: pickles of more than arrays need it",
    )
    parser.add_argument("opts", nargs=REMAINDER, help="overrides: KEY VALUE ...")


def default_port() -> int:
    """The port of Detectron2's launcher: the same for every run of a user."""
    return 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14


def run(args: Namespace) -> int:
    """Launches the processes that --num-gpus and --num-machines ask for."""
    if args.dry_run:
        from ..analysis.dry_run import dry_run

        return dry_run(args)
    announce(args)
    from ..engine.launch import launch
    from ..engine.main import main

    launch(main, args)
    return 0


def announce(args: Namespace) -> None:
    """Says what is begun, before the seconds in which PyTorch and Detectron2 are imported."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return
    given = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    settings = read_yaml(find_config(args.config_file))
    folder = given.get("OUTPUT_DIR", settings.get("OUTPUT_DIR", "./output"))
    device = given.get("MODEL.DEVICE", settings.get("MODEL", {}).get("DEVICE"))
    begun = "evaluates" if args.eval_only else "resumes" if args.resume else "trains"
    number = f"{args.num_gpus} processes" if args.num_gpus > 1 else "one process"
    end = "" if args.eval_only else "; Ctrl-C writes a checkpoint, and --resume goes on from it"
    sys.stdout.write(
        f"{begun} {args.config_file or 'the default configuration'}\n"
        f"in {folder}, {number} on {device or 'a GPU if there is one'}{end}\n"
        "loading PyTorch and Detectron2 ...\n"
    )
    sys.stdout.flush()
