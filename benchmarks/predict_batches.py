"""Images a second of a predictor, one by one against in batches.

    python benchmarks/predict_batches.py --weights output/x/model_final.pth [--batch-size 8]

Random images of the model's own test size; both ways take turns, and the median of the rounds
counts.
"""

import argparse
import statistics
import sys
import time

import numpy as np
from tabulate import tabulate

from groupdetr_d2 import Predictor
from groupdetr_d2.engine.memory import keep_freed_memory


def seconds_of(predictor: Predictor, images: list[np.ndarray]) -> float:
    """Measures the time that the predictor takes for the images."""
    start = time.perf_counter()
    predictor(images)
    return time.perf_counter() - start


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device")
    args = parser.parse_args()
    keep_freed_memory()
    predictor = Predictor(args.weights, device=args.device)
    side = predictor.cfg.INPUT.MIN_SIZE_TEST
    generator = np.random.default_rng(0)
    shape = (args.num_images, side, side * 4 // 3, 3)
    images = list(generator.integers(0, 256, shape, dtype=np.uint8))
    times: dict[int, list[float]] = {1: [], args.batch_size: []}
    for i in range(args.rounds + 1):
        for size, measured in times.items():
            predictor.batch_size = size
            seconds = seconds_of(predictor, images)
            measured += [seconds] if i else []  # the first round warms up
    rows = [(n, args.num_images / statistics.median(t)) for n, t in times.items()]
    slow, fast = rows[0][1], rows[-1][1]
    table = tabulate(rows, headers=["batch", "images a second"], floatfmt=".2f")
    sys.stdout.write(f"{side} x {shape[2]} pixels\n{table}\nratio {fast / slow:.2f}\n")


if __name__ == "__main__":
    main()
