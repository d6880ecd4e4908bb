"""Makes the index of nuScenes' keyframes of its tables, once, before training."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--root", help="folder with samples/, sweeps/ and tables; $DETECTRON2_DATASETS/nuscenes"
    )
    parser.add_argument("--version", default="v1.0-trainval", help="folder of the tables")


def run(args: Namespace) -> int:
    """Makes what is missing or stale, and prints what is in each split; returns 0."""
    from ..data.nuscenes.preparing import prepare

    root = args.root or Path(os.getenv("DETECTRON2_DATASETS", "datasets"), "nuscenes")
    for summary in prepare(root, args.version, progress=sys.stderr.isatty()):
        sys.stdout.write(f"{summary}\n")
    return 0
