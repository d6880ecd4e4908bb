"""Everything that is to be measured on a machine with a GPU, in portions that can be continued.

    python benchmarks/gpu_campaign.py --results docs/results/gpu.json [--minutes 9] [--only cost]
    python benchmarks/gpu_campaign.py --results docs/results/gpu.json --report docs/results.md

Four kinds of tasks, each recorded when it is done and then not repeated:

- correctness: every model on the GPU against the CPU, in float32 and bfloat16, and a training step;
- cost: time and memory of a training step at K = 1 and 11, 800 x 1333, batch 2;
- evaluation: time of an image at K = 1 and 11;
- training: K = 1 against 11 on generated images of 256 pixels; with --data on blood cells too,
  from an ImageNet ResNet-50; through `analyze sweep`; an interrupted training is resumed.

No network is needed. --data is a folder with bccd/{annotations,images} and weights/R-50-rgb.pkl
(see docs/results.md).
"""

import argparse
import copy
import datetime
import json
import multiprocessing
import re
import sys
import time
from pathlib import Path

import torch
from all_models import MODELS
from detectron2.modeling import build_model

from groupdetr_d2.analysis.step_cost import make_batch, measure_step
from groupdetr_d2.analysis.sweep import PACKAGES, describe_machine, version_of
from groupdetr_d2.commands import analyze
from groupdetr_d2.engine.setup import build_config
from groupdetr_d2.engine.solver import build_optimizer

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = (1, 11)
CLOSE = {"float32": 2e-3, "bfloat16": 1e-1}  # largest difference of outputs that counts as equal
MARKS = ("<!-- gpu: begin -->", "<!-- gpu: end -->")
MISSING = "not yet measured"


def settings(name: str, args: argparse.Namespace, num_groups: int):
    """The configuration of a model of MODELS."""
    config, *opts = MODELS[name]
    opts += ["MODEL.DETR.NUM_GROUPS", str(num_groups), "MODEL.DEVICE", args.device, *args.opts]
    return build_config(str(CONFIGS / config), [*opts, "MODEL.WEIGHTS", ""])


def check_correctness(name: str, args: argparse.Namespace) -> dict:
    """Outputs and gradients against the CPU's, and a whole training step on the device."""
    torch.manual_seed(0)
    cfg = settings(name, args, 3)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.DETR.DROPOUT = 0.0
    model = build_model(cfg).eval()
    randomize_heads(model)
    batch = make_batch((128, 160), 2, num_objects=5, num_classes=cfg.MODEL.DETR.NUM_CLASSES)
    expected = outputs_and_gradient(model, batch, None)
    device_model = copy.deepcopy(model).to(args.device)
    result = {}
    for precision, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        found = outputs_and_gradient(device_model, batch, dtype)
        close = (found[0] - expected[0]).abs().amax(-1) < CLOSE[precision]
        result[f"{precision}: equal outputs"] = close.float().mean().item()
        cosine = torch.cosine_similarity(found[1], expected[1], dim=0)
        result[f"{precision}: cosine of gradients"] = cosine.item()
    device_model.train()
    optimizer = build_optimizer(cfg, device_model)
    loss = sum(device_model(batch).values())
    loss.backward()
    optimizer.step()
    result["finite step"] = bool(loss.isfinite())
    return result


def randomize_heads(model) -> None:
    """The last box layers start at zero, which hides what is wrong."""
    for head in model.head.predictor.layer_box_heads:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.1)


def outputs_and_gradient(model, batch: list[dict], dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and scores (queries, .), and the gradient of a fixed sum of them, on the CPU."""
    model.zero_grad()
    kind = model.device.type
    with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        predictions = model.predict(batch, model.groups)
    outputs = torch.cat([predictions.boxes, predictions.logits.sigmoid()], -1).flatten(0, 2)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    (outputs * weights.to(outputs.device)).sum().backward()
    gradients = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    return outputs.detach().float().cpu(), torch.cat(gradients)


def measure_cost(name: str, args: argparse.Namespace, *, training: bool = True) -> dict:
    """Seconds and peak memory at every K, each in a process of its own."""
    result = {}
    for num_groups in GROUPS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            cost = pool.apply(_cost, (name, args, num_groups, training))
        result[f"K = {num_groups}"] = {
            "seconds": cost["seconds"],
            "peak MiB": cost["peak_mib"],
            "shares": cost["shares"],
        }
    return result


def _cost(name: str, args: argparse.Namespace, num_groups: int, training: bool) -> dict:
    cfg = settings(name, args, num_groups)
    batch_size = 2 if training else 1
    size = tuple(args.image_size)
    return measure_step(cfg, size, batch_size, num_objects=7, steps=args.steps, training=training)


def measure_evaluation(name: str, args: argparse.Namespace) -> dict:
    """The same of inference."""
    return measure_cost(name, args, training=False)


TASKS = {
    "correctness": check_correctness,
    "cost": measure_cost,
    "evaluation": measure_evaluation,
}

KINDS = [*TASKS, "training"]


def run_missing(args: argparse.Namespace, results: dict) -> None:
    """Task after task until the time is over."""
    end = time.monotonic() + 60 * args.minutes
    wanted = [(kind, name) for kind in TASKS if kind in args.only for name in MODELS]
    for kind, name in wanted:
        is_done = results.get(kind, {}).get(name, {"error": "missing"})["error"] is None
        if is_done or time.monotonic() > end:
            continue
        try:
            record = {**TASKS[kind](name, args), "error": None}
        except Exception as error:  # one model's fault is a finding, not the campaign's end
            record = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        record["machine"] = describe_machine()
        record["versions"] = {package: version_of(package) for package in PACKAGES}
        record["date"] = datetime.date.today().isoformat()
        results.setdefault(kind, {})[name] = record
        write_json(args.results, results)
        sys.stdout.write(f"{kind}, {name}: {record['error'] or 'done'}\n")
        sys.stdout.flush()


SEEDS = ("0", "1", "2")
LARGER_SHAPES = (
    "DATASETS.SHAPES.IMAGE_SIZE 256 DATASETS.SHAPES.MAX_OBJECTS 16 INPUT.MIN_SIZE_TRAIN (256,) "
    "INPUT.MAX_SIZE_TRAIN 256 INPUT.MIN_SIZE_TEST 256 INPUT.MAX_SIZE_TEST 256 "
    "MODEL.DETR.NUM_OBJECT_QUERIES 50 SOLVER.IMS_PER_BATCH 16 DATALOADER.NUM_WORKERS 6 "
    "TEST.EVAL_PERIOD 350 SOLVER.CHECKPOINT_PERIOD 350"
)
SHAPES_MODELS = ("conditional_detr", "dab_detr", "dn_detr", "dab_deformable_detr", "dino")


def list_trainings(args: argparse.Namespace) -> list[str]:
    """The --run arguments of a sweep: pairs of K = 1 and 11."""
    device, runs = f"MODEL.DEVICE {args.device}", []
    for k in GROUPS:
        for model in SHAPES_MODELS:
            config = CONFIGS / f"quick_start/{model}_shapes.yaml"
            runs.append(
                f"{model}, shapes 256, K = {k}: {config} MODEL.DETR.NUM_GROUPS {k} {LARGER_SHAPES} "
                f"{device}"
            )
        if args.data:
            data, config = (
                args.data.resolve(),
                CONFIGS / "blood_cells/conditional_detr_R_50_27ep.yaml",
            )
            paths = " ".join(
                f"DATASETS.CUSTOM.{which}_JSON {data}/bccd/annotations/{name}.json "
                f"DATASETS.CUSTOM.{which}_IMAGES {data}/bccd/images"
                for which, name in (("TRAIN", "train"), ("VAL", "test"))
            )
            runs.append(
                f"conditional_detr, blood cells, K = {k}: {config} MODEL.DETR.NUM_GROUPS {k} "
                f"MODEL.WEIGHTS {data}/weights/R-50-rgb.pkl MODEL.RESNETS.STRIDE_IN_1X1 True "
                f"DATALOADER.NUM_WORKERS 6 {paths} {device}"
            )
    return runs


def compare_trainings(args: argparse.Namespace, minutes: float) -> None:
    """Goes on with the sweep; its results stand beside those of the other tasks."""
    results = args.results.with_name(f"{args.results.stem}_training.json")
    sweep = ["sweep", "--results", str(results), "--out", "output/gpu_campaign"]
    sweep += ["--minutes", f"{minutes:.2f}", "--seeds", *SEEDS]
    for run in list_trainings(args):
        sweep += ["--run", run]
    analyze.main([*sweep, *args.opts])


def write_json(path: Path, results: dict) -> None:
    """An interrupted write leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    unfinished.replace(path)


def report(results: dict) -> str:
    """The tables of docs/results.md."""
    lines = ["| model | equal outputs float32 | bfloat16 | cosine of gradients | step |"]
    lines.append("|---|---|---|---|---|")
    for name in MODELS:
        found = results.get("correctness", {}).get(name)
        lines.append(f"| {name} | {' | '.join(_correctness_cells(found))} |")
    for kind, title in (("cost", "training step"), ("evaluation", "inference")):
        lines += ["", f"| {title} | s, K = 1 | s, K = 11 | ratio | MiB, K = 1 | MiB, K = 11 |"]
        lines.append("|---|---|---|---|---|---|")
        for name in MODELS:
            lines.append(f"| {name} | {' | '.join(_cost_cells(results.get(kind, {}).get(name)))} |")
    origins = {
        f"{r['machine']}, torch {r['versions']['torch']}, {r['date']}"
        for records in results.values()
        for r in records.values()
    }
    return "\n".join([*lines, "", f"Measured on: {'; '.join(sorted(origins)) or MISSING}."])


def _correctness_cells(found: dict | None) -> list[str]:
    if found is None or found["error"]:
        return [found["error"].split(":")[0] if found else MISSING] * 4
    return [
        f"{100 * found['float32: equal outputs']:.1f} %",
        f"{100 * found['bfloat16: equal outputs']:.1f} %",
        f"{found['float32: cosine of gradients']:.5f}",
        "finite" if found["finite step"] else "not finite",
    ]


def _cost_cells(found: dict | None) -> list[str]:
    if found is None or found["error"]:
        return [found["error"].split(":")[0] if found else MISSING] * 5
    one, many = (found[f"K = {k}"] for k in GROUPS)
    return [
        f"{one['seconds']:.3f}",
        f"{many['seconds']:.3f}",
        f"{many['seconds'] / one['seconds']:.2f}",
        f"{one['peak MiB']:.0f}",
        f"{many['peak MiB']:.0f}",
    ]


def insert_report(path: Path, text: str) -> None:
    """Replaces what stands between the marks."""
    begin, end = MARKS
    content = path.read_text()
    if begin not in content or end not in content:
        raise SystemExit(f"{path} has no {begin} ... {end}")
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.S)
    path.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", content))


def main(argv: list[str] | None = None) -> None:
    """Runs what is missing, or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="JSON that is added to")
    parser.add_argument("--minutes", type=float, default=9, help="no task begins after so long")
    parser.add_argument("--only", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--data", type=Path, help="folder with bccd/ and weights/")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--image-size", type=int, nargs=2, default=[800, 1333])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--report", type=Path, help="a Markdown file whose tables to renew")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides: KEY VALUE ...")
    args = parser.parse_args(argv)
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    if args.report:
        insert_report(args.report, report(results))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this machine has no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    start = time.monotonic()
    run_missing(args, results)
    left = args.minutes - (time.monotonic() - start) / 60
    if "training" in args.only and left > 0:
        compare_trainings(args, left)


if __name__ == "__main__":
    main()
