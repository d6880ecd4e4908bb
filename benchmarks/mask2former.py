"""Mask2Former (K = 1) beside Hugging Face's: time and memory of a training step and of inference.

    python benchmarks/mask2former.py [--image-size 512 512] [--objects 5] [--steps 3]

Both have a ResNet-50 and random weights, and run in processes of their own on the CPU; a step is
forward, matching, losses, backward and AdamW. Inference ends with the hundred best masks of an
image. `--memory` prints the memory of our inference beyond the model, for several numbers of
queries, on an image of 1024 pixels.
"""

import argparse
import statistics
import sys
import time

import torch
from tabulate import tabulate

from groupdetr_d2.analysis.random_batch import make_batch
from groupdetr_d2.analysis.step_cost import run_apart
from groupdetr_d2.config import build_config
from groupdetr_d2.engine.memory import keep_freed_memory, peak_memory_mib
from groupdetr_d2.engine.solver import build_optimizer

CONFIG = "configs/Mask2Former/mask2former_R_50_50ep.yaml"
CLASSES = 80


def ours(size: tuple[int, int], objects: int, steps: int, training: bool, queries: int = 100):
    """Measures a training step of two images, or inference on one."""
    from detectron2.modeling import build_model

    keep_freed_memory()
    torch.manual_seed(0)
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.DETR.NUM_OBJECT_QUERIES", queries]
    cfg = build_config(CONFIG, opts)
    model = build_model(cfg).train(training)
    batch = make_batch(size, 2 if training else 1, objects, CLASSES)
    optimizer = build_optimizer(cfg, model)

    def step() -> None:
        if not training:
            with torch.no_grad():
                model(batch)
            return
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    return measured(step, steps)


def hugging_face(size: tuple[int, int], objects: int, steps: int, training: bool):
    """Measures the same of transformers' model."""
    import transformers

    keep_freed_memory()
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.ResNetConfig(out_features=stages), num_labels=CLASSES
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).train(training)
    batch = make_batch(size, 2 if training else 1, objects, CLASSES)
    pixels = torch.stack([(x["image"].float() - 120) / 58 for x in batch])
    labels = {
        "mask_labels": [x["instances"].gt_masks.tensor.float() for x in batch],
        "class_labels": [x["instances"].gt_classes for x in batch],
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    processor = transformers.Mask2FormerImageProcessor()

    def step() -> None:
        if not training:
            with torch.no_grad():
                found = model(pixel_values=pixels)
                processor.post_process_instance_segmentation(
                    found, threshold=0.0, target_sizes=[size]
                )
            return
        optimizer.zero_grad()
        model(pixel_values=pixels, **labels).loss.backward()
        optimizer.step()

    return measured(step, steps)


def measured(step, steps: int) -> dict:
    """Returns the median seconds of a step, after one more, and the peak memory of the process."""
    before = peak_memory_mib(torch.device("cpu"))
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = peak_memory_mib(torch.device("cpu"))
    return {
        "seconds": statistics.median(seconds[1:]),
        "MiB": peak,
        "beyond the model": peak - before,
    }


def compare(args: argparse.Namespace) -> str:
    """Measures both, in training and at inference."""
    size, rows = tuple(args.image_size), []
    for training, what in ((True, "training step, batch 2"), (False, "inference, batch 1")):
        results = {
            name: run_apart(function, size, args.objects, args.steps, training)
            for name, function in (("this package", ours), ("transformers", hugging_face))
        }
        theirs = results["transformers"]
        for name, found in results.items():
            rows.append(
                {
                    "what": what,
                    "model": name,
                    "seconds": f"{found['seconds']:.2f}",
                    "x faster": f"{theirs['seconds'] / found['seconds']:.2f}",
                    "peak MiB": f"{found['MiB']:.0f}",
                    "x memory": f"{found['MiB'] / theirs['MiB']:.2f}",
                }
            )
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def memory(args: argparse.Namespace) -> str:
    """Measures what inference on a large image takes beyond the model."""
    rows = []
    for queries in (100, 300, 900):
        found = run_apart(ours, (1024, 1024), args.objects, 1, False, queries)
        row = {"queries": queries, "MiB beyond the model": f"{found['beyond the model']:.0f}"}
        rows.append(row | {"seconds": f"{found['seconds']:.2f}"})
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--objects", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    sys.stdout.write((memory(args) if args.memory else compare(args)) + "\n")


if __name__ == "__main__":
    main()
