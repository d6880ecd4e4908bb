"""A training that writes every iteration's losses down at once, for test_interruption.py."""

import json
import os
import time
from pathlib import Path

from detectron2.utils import comm

from groupdetr_d2.commands import build_parser
from groupdetr_d2.engine import report
from groupdetr_d2.engine.launch import launch
from groupdetr_d2.engine.main import main as train
from groupdetr_d2.engine.train_step import TrainStep


def leave_pictures_out(setattr=setattr):
    """Leaves the report empty: its pictures take longer than a tiny training."""
    setattr(report, "draw_curves", lambda folder, path, metric: path.touch())
    setattr(
        report, "write_report", lambda cfg, *_, **__: Path(cfg.OUTPUT_DIR, "report.html").touch()
    )


def main(args):
    """In every process, after `launch`."""
    path = Path(os.environ["RECORD_FOLDER"], f"{comm.get_rank()}.jsonl")
    pause = float(os.environ.get("RECORD_PAUSE", 0))
    original = TrainStep._write_metrics

    def record(self, losses, *rest, **named):
        values = {name: value.item() for name, value in losses.items()}
        with path.open("a") as file:
            file.write(json.dumps([self.iter, values]) + "\n")
        time.sleep(pause)
        return original(self, losses, *rest, **named)

    TrainStep._write_metrics = record
    leave_pictures_out()
    train(args)


def run(words):
    """Trains with the arguments of train_net.py."""
    launch(main, build_parser().parse_args(["train", *words]))
