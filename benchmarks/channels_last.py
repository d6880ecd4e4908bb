"""Time of a step of the quick starts' small ResNet with channels last, and as Detectron2 has it.

    python benchmarks/channels_last.py

Forward and backward of one model on one batch; steps with either stem take turns, so that a machine
whose speed drifts is slow for both.
"""

import argparse
import statistics
import sys
import time

import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicStem
from tabulate import tabulate

from groupdetr_d2 import model_zoo
from groupdetr_d2.analysis.random_batch import random_inputs
from groupdetr_d2.engine.memory import keep_freed_memory
from groupdetr_d2.modeling.backbone import ChannelsLastStem

CASES = {  # configuration, size of an image, images or keyframes in a batch
    "Conditional DETR on shapes": ("conditional_detr_shapes", (128, 128), 8),
    "PETR on cubes": ("petr_cubes", (48, 88), 8),
}
STEPS, WARM_UP = 40, 4


def seconds_of(config: str, size: tuple[int, int], batch_size: int, num_groups: int) -> list[float]:
    """Measures the median step with Detectron2's stem, and with ours."""
    cfg = model_zoo.get_config(f"quick_start/{config}.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_GROUPS", num_groups])
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = random_inputs(cfg, size, batch_size, 8)
    times: dict[type, list[float]] = {BasicStem: [], ChannelsLastStem: []}
    for i in range(WARM_UP + STEPS):
        for stem, own in times.items():
            model.backbone.stem.__class__ = stem
            start = time.perf_counter()
            sum(model(batch).values()).backward()
            if i >= WARM_UP:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times.values()]


def main() -> None:
    """Prints one table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    keep_freed_memory()
    rows = []
    for name, case in CASES.items():
        for num_groups in (1, 5):
            before, after = seconds_of(*case, num_groups)
            rows.append((f"{name}, K = {num_groups}", 1e3 * before, 1e3 * after, after / before))
    names = ["ms", "Detectron2's", "channels last", "ratio"]
    sys.stdout.write(tabulate(rows, headers=names, floatfmt=("", ".0f", ".0f", ".2f")) + "\n")


if __name__ == "__main__":
    main()
