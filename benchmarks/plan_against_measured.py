"""The memory that `plan` counts, against the memory that training steps take on this CPU.

    python benchmarks/plan_against_measured.py [--only dino]

Prints the rows of the table in docs/performance.md. Every row is measured in a process of its own:
the highest resident memory of two training steps above that before the model was built. A small
step of the same model goes ahead, so that what is loaded at first use does not count, and glibc is
told to give freed memory back at once. The plan is for the kernels of a CPU and one process.
"""

import argparse
import ctypes
import gc
import re
import sys
from pathlib import Path

import torch
from detectron2.modeling import build_model

from groupdetr_d2.analysis.random_batch import random_inputs
from groupdetr_d2.analysis.step_cost import run_apart
from groupdetr_d2.analysis.step_memory import estimate_step
from groupdetr_d2.config import build_config
from groupdetr_d2.engine.solver import amp_dtype_of, build_optimizer

STEPS, OBJECTS, BATCH = 2, 7, 2
M_MMAP_THRESHOLD, LARGEST_KEPT = -3, 2**16  # <malloc.h>
SMALL_VIT = [
    *("MODEL.VIT.EMBED_DIM", 192, "MODEL.VIT.NUM_HEADS", 3, "MODEL.VIT.DEPTH", 6),
    *("MODEL.VIT.GLOBAL_BLOCKS", [2, 5], "MODEL.EMA.ENABLED", False),
]
IN_FULL = ["SOLVER.AMP.ENABLED", False]
CASES = {
    "Conditional DETR, K = 1": ("ConditionalDETR/conditional_detr_R_50_12ep", (384, 512), []),
    "Conditional DETR, K = 5": (
        "ConditionalDETR/conditional_detr_R_50_12ep", (384, 512), ["MODEL.DETR.NUM_GROUPS", 5],
    ),
    "DAB-Deformable-DETR, K = 5": (
        "DAB-Deformable-DETR/dab_deformable_detr_R_50_12ep", (256, 384),
        ["MODEL.DETR.NUM_GROUPS", 5],
    ),
    "DINO, K = 3": ("DINO/dino_4scale_R_50_12ep", (256, 384), ["MODEL.DETR.NUM_GROUPS", 3]),
    "Mask2Former, K = 3": (
        "Mask2Former/mask2former_R_50_12ep", (256, 384), ["MODEL.DETR.NUM_GROUPS", 3, *IN_FULL],
    ),
    "PETR of the quick start, K = 3": ("quick_start/group_petr_cubes", (128, 320), IN_FULL),
    "DINO, small ViT, recompute, K = 3": (
        "DINO/dino_4scale_ViT_B_20ep", (320, 480),
        ["MODEL.DETR.NUM_GROUPS", 3, *SMALL_VIT, *IN_FULL],
    ),
    "DINO, small ViT, recompute, bfloat16, K = 3": (
        "DINO/dino_4scale_ViT_B_20ep", (224, 320), ["MODEL.DETR.NUM_GROUPS", 3, *SMALL_VIT],
    ),
}  # fmt: skip


def config_of(name: str):
    """Builds the configuration of a case."""
    file, _, opts = CASES[name]
    cfg = build_config(f"configs/{file}.yaml", opts)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    return cfg


def measure(name: str) -> float:
    """Measures the bytes that steps of a case take, in this process."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
    cfg, (height, width) = config_of(name), CASES[name][1]
    train(cfg, (height // 4, width // 4), steps=1)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory is that from here on
    before = resident("VmRSS")
    train(cfg, (height, width), steps=STEPS)
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """Reads a number of bytes from this process's status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * float(found[1])


def train(cfg, size: tuple[int, int], steps: int) -> None:
    """Trains a model for a few steps."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model, clips=False)
    batch, dtype = random_inputs(cfg, size, BATCH, OBJECTS), amp_dtype_of(cfg)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            losses = model(batch)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def plan(name: str) -> float:
    """Counts the bytes that a step of the case will take."""
    estimate = estimate_step(
        config_of(name),
        image_size=CASES[name][1],
        batch_size=BATCH,
        num_gpus=1,
        num_objects=OBJECTS,
        device="cpu",
    )
    return estimate.total


def main() -> None:
    """Prints rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models whose name contains this")
    args = parser.parse_args()
    sys.stdout.write("| model | images | planned MiB | measured MiB | planned / measured |\n")
    sys.stdout.write("|---|---|---|---|---|\n")
    for name, (_, (height, width), _) in CASES.items():
        if args.only.lower() in name.lower():
            planned, measured = plan(name) / 2**20, run_apart(measure, name) / 2**20
            cells = f"{planned:.0f} | {measured:.0f} | {planned / measured:.2f}"
            sys.stdout.write(f"| {name} | {BATCH} of {height} x {width} | {cells} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
