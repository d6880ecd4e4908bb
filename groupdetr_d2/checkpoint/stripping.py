"""Makes a checkpoint small: the primary group alone, no optimizer, the same results."""

import argparse
import sys
from pathlib import Path

from detectron2.modeling import build_model

from ..engine.launch import report_errors
from ..inference.predictor import config_of, read_checkpoint
from . import GroupCheckpointer
from .files import write_safely


def main(argv: list[str]) -> int:
    """Writes OUT and says how large both are."""
    parser = argparse.ArgumentParser(prog="groupdetr_d2 strip", description=__doc__)
    parser.add_argument("input", help="a checkpoint of train_net.py")
    parser.add_argument("output", help="the checkpoint to write; inference and fine-tuning take it")
    args = parser.parse_args(argv)
    with report_errors():
        strip(args.input, args.output)
        before, after = (Path(p).stat().st_size / 2**20 for p in (args.input, args.output))
        sys.stdout.write(f"{args.output}: {after:.1f} MiB instead of {before:.1f}\n")
    return 0


def strip(path: str, out: str) -> None:
    """The running mean takes the place of the weights, if there is one (MODEL.EMA).

    Raises:
        CheckpointError: the file is none of this package's checkpoints.
    """
    run = read_checkpoint(path)["run"]
    cfg = config_of({"run": run})
    cfg.MODEL.DETR.NUM_GROUPS, cfg.MODEL.EMA.ENABLED = 1, False
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = build_model(cfg)
    GroupCheckpointer(model).load(path, checkpointables=[])
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_safely(out, {"model": model.state_dict(), "run": {**run, "config": cfg.dump()}})
