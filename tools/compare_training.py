"""Compares ten seeded training steps of this checkout with those of another revision.

    python tools/compare_training.py REVISION

Five models, shrunk, at K = 1 and 3, with dropout and AdamW. A refactoring must give the same losses
to the last digit; the script prints the first difference of each case and exits with 1 if there is
one. It uses nothing of the package but its configuration and its registered models, so that it runs
in old and new revisions alike.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS, GROUPS = 10, (1, 3)
CONFIGS = (
    "ConditionalDETR/conditional_detr_R_50_12ep.yaml",
    "DN-DETR/dn_detr_R_50_12ep.yaml",
    "DINO/dino_4scale_R_50_12ep.yaml",
    "Deformable-DETR/deformable_detr_two_stage_R_50_50ep.yaml",
    "SAM-DETR/sam_detr_R_50_12ep.yaml",
)
SHRINK = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 50),
    *("MODEL.DETR.HIDDEN_DIM", 64, "MODEL.DETR.NHEADS", 4, "MODEL.DETR.DIM_FEEDFORWARD", 96),
    *("MODEL.DETR.NUM_OBJECT_QUERIES", 20, "MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", 3),
]


def main() -> int:
    """Runs the steps in both trees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="a commit, branch or tag")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        json.dump(all_losses(Path.cwd()), sys.stdout)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(tree), args.revision], check=True)
        try:
            before, now = run_in(tree), run_in(ROOT)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    return report(before, now)


def run_in(tree: Path) -> dict[str, list[dict]]:
    """The losses of a checkout, computed in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "-", "--run"]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def all_losses(tree: Path) -> dict[str, list[dict]]:
    """Per case, every step's losses as hexadecimal numbers."""
    return {
        f"{Path(config).stem}, K = {k}": train(str(tree / "configs" / config), k)
        for config in CONFIGS
        for k in GROUPS
    }


def train(config: str, num_groups: int) -> list[dict]:
    """The losses of ten steps of AdamW on one padded batch."""
    import torch
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from groupdetr_d2 import add_groupdetr_config

    cfg = get_cfg()
    add_groupdetr_config(cfg)
    cfg.merge_from_file(config)
    cfg.merge_from_list([*SHRINK, "MODEL.DETR.NUM_GROUPS", num_groups])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = [make_image(96, 128, 4, 1), make_image(128, 96, 3, 2)]
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        found.append({name: value.item().hex() for name, value in losses.items()})
    return found


def make_image(height: int, width: int, num_objects: int, seed: int) -> dict:
    """A random image with random boxes."""
    import torch
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_objects, 2, generator=generator) * 0.5
    extent = torch.rand(num_objects, 2, generator=generator) * 0.4 + 0.1
    instances = Instances((height, width))
    scale = torch.tensor([width, height, width, height])
    instances.gt_boxes = Boxes(torch.cat([corner, corner + extent], 1) * scale)
    instances.gt_classes = torch.randint(80, (num_objects,), generator=generator)
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def report(before: dict[str, list[dict]], now: dict[str, list[dict]]) -> int:
    """Prints one line per case."""
    failed = 0
    for case, steps in now.items():
        pairs = zip(before[case], steps, strict=True)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        last = sum(map(float.fromhex, steps[-1].values()))
        verdict = "identical" if first is None else f"DIFFERENT from step {first} on"
        failed += first is not None
        sys.stdout.write(f"{case:<50} total loss {last:10.6f} after {STEPS} steps: {verdict}\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
