"""The cost of a training step of every model, one after the other.

    python benchmarks/all_models.py [--num-groups 1 11] [--image-size 480 640] [--only dino]

Prints the rows of the table in docs/performance.md. Every row is measured in a process of its own.
"""

import argparse
import json
import subprocess
import sys

MODELS = {
    "Conditional DETR": ["ConditionalDETR/conditional_detr_R_50_12ep.yaml"],
    "DAB-DETR": ["DAB-DETR/dab_detr_R_50_12ep.yaml"],
    "DN-DETR": ["DN-DETR/dn_detr_R_50_12ep.yaml"],
    "SAM-DETR": ["SAM-DETR/sam_detr_R_50_12ep.yaml"],
    "SAM-DETR++": ["SAM-DETR/sam_detr_pp_R_50_12ep.yaml"],
    "Deformable DETR": ["Deformable-DETR/deformable_detr_R_50_50ep.yaml"],
    "Deformable DETR, two-stage": ["Deformable-DETR/deformable_detr_two_stage_R_50_50ep.yaml"],
    "DAB-Deformable-DETR": ["DAB-Deformable-DETR/dab_deformable_detr_R_50_12ep.yaml"],
    "DAB-Deformable-DETR, two-stage": [
        "DAB-Deformable-DETR/dab_deformable_detr_two_stage_R_50_50ep.yaml"
    ],
    "DN-DAB-Deformable-DETR": ["DAB-Deformable-DETR/dn_dab_deformable_detr_R_50_50ep.yaml"],
    "DINO": ["DINO/dino_4scale_R_50_12ep.yaml"],
    "Mask2Former": ["Mask2Former/mask2former_R_50_12ep.yaml", "SOLVER.AMP.ENABLED", "False"],
    "PETR": ["PETR/petr_V2_99_800x320_24ep.yaml", "SOLVER.AMP.ENABLED", "False"],
    "PETRv2": ["PETR/petrv2_V2_99_800x320_24ep.yaml", "SOLVER.AMP.ENABLED", "False"],
    "DINO, CHECKPOINTING": ["DINO/dino_4scale_R_50_12ep.yaml", "MODEL.DETR.RECOMPUTE", "True"],
}
# of the six or twelve photographs of a sample, whatever --image-size says
IMAGE_SIZES = {"PETR": (320, 800), "PETRv2": (320, 800)}
HEAD = (
    "| model | K | step s (min-max) | x time | GFLOP | x FLOP | peak MiB | x memory | matching % |"
)


def measure(name: str, args: argparse.Namespace) -> list[dict]:
    """What `python -m groupdetr_d2 benchmark --json` says."""
    config, *opts = MODELS[name]
    command = [sys.executable, "-W", "ignore", "-m", "groupdetr_d2", "benchmark", "--json"]
    command += ["--config-file", f"configs/{config}", "--steps", str(args.steps)]
    command += ["--num-groups", *map(str, args.num_groups)]
    command += ["--image-size", *map(str, IMAGE_SIZES.get(name, args.image_size)), *opts]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def format_row(name: str, result: dict, first: dict) -> str:
    """One line of the table; ratios are to the first K."""
    seconds = f"{result['seconds']:.3f} ({result['fastest']:.3f}-{result['slowest']:.3f})"
    ratios = {key: result[key] / first[key] for key in ("seconds", "flops", "peak_mib")}
    cells = (
        name,
        result["K"],
        seconds,
        f"{ratios['seconds']:.2f}",
        f"{result['flops'] / 1e9:.0f}",
        f"{ratios['flops']:.2f}",
        f"{result['peak_mib']:.0f}",
        f"{ratios['peak_mib']:.2f}",
        f"{100 * result['shares']['matching']:.1f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Prints rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-groups", type=int, nargs="+", default=[1, 11])
    parser.add_argument("--image-size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default="", help="models whose name contains this")
    args = parser.parse_args()
    sys.stdout.write(f"{HEAD}\n|{'---|' * 9}\n")
    for name in MODELS:
        if args.only.lower() in name.lower():
            results = measure(name, args)
            for result in results:
                sys.stdout.write(format_row(name, result, results[0]) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
