"""Everything that is to be measured on a machine with a GPU, in portions that can be continued.

    python benchmarks/gpu_campaign.py --results docs/results/gpu.json [--minutes 9] [--only cost]
    python benchmarks/gpu_campaign.py --results docs/results/gpu.json --report docs/results.md

Six kinds of tasks, each recorded when it is done and then not repeated; what failed or took longer
than --task-minutes is tried again after what has not been tried:

- sampling: the kernels of deformable attention against the reference;
- correctness: every model on the GPU against the CPU in float32, the GPU in float32 and bfloat16
  (and the CPU in bfloat16, for what rounding alone does), and training steps;
- cost, bfloat16_cost: time and memory of a training step at K = 1 and 11, 800 x 1333, batch 2;
- evaluation: time of an image at K = 1 and 11;
- training: K = 1 against 11 on generated images of 256 pixels; with --data on blood cells too,
  from an ImageNet ResNet-50; through `analyze sweep`; an interrupted training is resumed.

No network is needed. --data is a folder with bccd/{annotations,images} and weights/R-50-rgb.pkl
(see docs/results.md).
"""

import argparse
import copy
import datetime
import functools
import json
import os
import re
import sys
import time
from pathlib import Path

import torch
from all_models import IMAGE_SIZES, MODELS
from deform_sampling import make_inputs
from detectron2.modeling import build_model

from groupdetr_d2 import commands
from groupdetr_d2.analysis.random_batch import random_inputs
from groupdetr_d2.analysis.results_file import PACKAGES, describe_machine, version_of
from groupdetr_d2.analysis.runs import Run, by_label, mean_and_spread, read_runs
from groupdetr_d2.analysis.step_cost import measure_step, run_apart
from groupdetr_d2.config import build_config
from groupdetr_d2.engine.solver import build_optimizer
from groupdetr_d2.layers import deform_sampling

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = (1, 11)
CLOSE = {"float32": 2e-3, "bfloat16": 1e-1}  # largest difference of outputs that counts as equal
ROUNDED = "bfloat16 on the CPU"
MARKS = ("<!-- gpu: begin -->", "<!-- gpu: end -->")
MISSING = "not yet measured"


def settings(name: str, args: argparse.Namespace, num_groups: int):
    """The configuration of a model of MODELS."""
    config, *opts = MODELS[name]
    opts += ["MODEL.DETR.NUM_GROUPS", str(num_groups), "MODEL.DEVICE", args.device, *args.opts]
    return build_config(str(CONFIGS / config), [*opts, "MODEL.WEIGHTS", ""])


def check_correctness(name: str, args: argparse.Namespace, _: dict) -> dict:
    """In a process of its own: a fault in a kernel spoils all that the process does later."""
    return run_apart(_compare, name, args, limit=60 * args.task_minutes)


def _compare(name: str, args: argparse.Namespace) -> dict:
    """Outputs and gradients against the CPU's, on a padded batch; training steps on the device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    cfg = settings(name, args, 3)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.DETR.DROPOUT = 0.0
    model = build_model(cfg).eval()
    randomize_heads(model)
    batch = [
        *random_inputs(cfg, (128, 160), 1, num_objects=5),
        *random_inputs(cfg, (100, 200), 1, num_objects=3),
    ]
    expected = outputs_and_gradient(model, batch, None)
    result = {}
    for precision, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        device_model = copy.deepcopy(model).to(args.device)
        found = outputs_and_gradient(device_model, batch, dtype)
        result[f"{precision}: equal outputs"] = share_of_equals(expected[0], found[0], precision)
        result[f"{precision}: error of gradients"] = error_of(expected[1], found[1])
        result[f"{precision}: finite step"] = takes_a_step(cfg, device_model, batch, dtype)
    rounded = outputs_and_gradient(model, batch, torch.bfloat16)
    result[f"{ROUNDED}: equal outputs"] = share_of_equals(expected[0], rounded[0], "bfloat16")
    result[f"{ROUNDED}: error of gradients"] = error_of(expected[1], rounded[1])
    return result


def error_of(expected: dict, found: dict) -> float:
    """The norm of the difference over the expected one's, of all gradients; NaN if one is."""
    difference = sum((x - found[name]).square().sum() for name, x in expected.items())
    return (difference / sum(x.square().sum() for x in expected.values())).sqrt().item()


def share_of_equals(expected: torch.Tensor, found: torch.Tensor, precision: str) -> float:
    """The share of an image's queries that have an equal among the other's, whatever the order.

    Rounding may change the order of a first stage's proposals.
    """
    shares = [
        ((a[:, None] - b[None]).abs().amax(-1) < CLOSE[precision]).any(1).float().mean()
        for a, b in zip(expected, found, strict=True)
    ]
    return torch.stack(shares).mean().item()


def takes_a_step(cfg, model, batch: list[dict], dtype) -> bool:
    """Whether all parameters are finite after a training step."""
    model.train()
    optimizer = build_optimizer(cfg, model, clips=False)
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None):
        loss = sum(model(batch).values())
    loss.backward()
    optimizer.step()
    return all(bool(p.isfinite().all()) for p in model.parameters())


def randomize_heads(model) -> None:
    """The last box layers start at zero, which hides what is wrong."""
    for head in getattr(model.head.predictor, "layer_box_heads", ()):
        torch.nn.init.normal_(head.layers[-1].weight, std=0.1)


def outputs_and_gradient(model, batch: list[dict], dtype) -> tuple[torch.Tensor, dict]:
    """The last layer's outputs, (B, Q, .), and the gradients of a sum of their squares.

    Outputs are scores and, by the model, boxes, mask embeddings or codes of boxes in space.
    """
    model.zero_grad()
    kind = model.device.type
    with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        predictions = model.predict(batch, model.groups)
    kinds = ("boxes", "embeddings", "codes")
    rest = next(getattr(predictions, x) for x in kinds if hasattr(predictions, x))
    outputs = torch.cat([rest, predictions.logits.sigmoid()], -1)  # (L, B, Q, .)
    outputs.square().sum().backward()
    gradients = {
        name: p.grad.flatten().double().cpu()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return outputs[-1].detach().float().cpu(), gradients


def check_sampling(args: argparse.Namespace) -> dict:
    """What deformable attention uses here against the reference, forward and backward."""
    shapes = ((23, 31), (12, 16), (6, 8), (3, 4))
    result = {"implementation": deform_sampling.fastest(args.device)}
    for dtype in (torch.float32, torch.bfloat16):
        outputs = []
        for sample in (deform_sampling.reference, deform_sampling.choose(args.device)):
            value, locations, weights = make_inputs(shapes, 500, args.device)
            out = sample(value.to(dtype), shapes, locations, weights)
            out.float().square().sum().backward()
            outputs.append([out.float(), value.grad, locations.grad, weights.grad])
        for part, a, b in zip(("output", "value", "location", "weight"), *outputs, strict=True):
            error = error_of({part: a.double()}, {part: b.double()})
            result[f"{part}, {dtype}".replace("torch.", "")] = error
    return result


def measure_cost(name: str, args: argparse.Namespace, known: dict, how: str = "training") -> dict:
    """Seconds and peak memory at every K, each in a process of its own.

    Args:
        known: an earlier result, in which a K may be missing.
        how: training, bfloat16 (training too) or inference.
    """
    result = {"error": None}
    for key, num_groups in ((f"K = {k}", k) for k in GROUPS):
        if key in known:
            result[key] = known[key]
            continue
        try:
            cost = run_apart(_cost, name, args, num_groups, how, limit=60 * args.task_minutes)
        except Exception as error:  # the other K may fit
            result["error"] = describe(error)
            continue
        result[key] = {
            "seconds": cost["seconds"],
            "peak MiB": cost["peak_mib"],
            "shares": cost["shares"],
        }
    return result


def describe(error: Exception) -> str:
    """In a line of the results."""
    return f"{type(error).__name__}: {str(error)[:500]}"


def _cost(name: str, args: argparse.Namespace, num_groups: int, how: str) -> dict:
    cfg, training = settings(name, args, num_groups), how != "inference"
    if how == "bfloat16":
        cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, "bfloat16"
    batch_size = 2 if training else 1
    size = tuple(IMAGE_SIZES.get(name, args.image_size))
    return measure_step(cfg, size, batch_size, num_objects=7, steps=args.steps, training=training)


TASKS = {
    "sampling": lambda _, args, __: run_apart(check_sampling, args, limit=60 * args.task_minutes),
    "correctness": check_correctness,
    "cost": measure_cost,
    "bfloat16_cost": functools.partial(measure_cost, how="bfloat16"),
    "evaluation": functools.partial(measure_cost, how="inference"),
}

KINDS = [*TASKS, "training"]


def run_missing(args: argparse.Namespace, results: dict) -> None:
    """Task after task until the time is over."""
    end = time.monotonic() + 60 * args.minutes
    wanted = [(k, name) for k in TASKS if k in args.only and k != "sampling" for name in MODELS]
    if "sampling" in args.only:
        wanted.insert(0, ("sampling", args.device))
    wanted.sort(key=lambda task: task[1] in results.get(task[0], {}))  # what failed comes last
    for kind, name in wanted:
        known = results.get(kind, {}).get(name, {"error": "missing"})
        if known["error"] is None or time.monotonic() > end:
            continue
        try:
            record = {"error": None, **TASKS[kind](name, args, known)}
        except Exception as error:  # one model's fault is a finding, not the campaign's end
            record = {"error": describe(error)}
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
    pairs = {
        f"{model}, shapes 256": f"configs/quick_start/{model}_shapes.yaml {LARGER_SHAPES}"
        for model in SHAPES_MODELS
    }
    if args.data:
        data = args.data.resolve()
        paths = " ".join(
            f"DATASETS.CUSTOM.{which}_JSON {data}/bccd/annotations/{name}.json "
            f"DATASETS.CUSTOM.{which}_IMAGES {data}/bccd/images"
            for which, name in (("TRAIN", "train"), ("VAL", "test"))
        )
        pairs["conditional_detr, blood cells"] = (
            f"configs/blood_cells/conditional_detr_R_50_27ep.yaml {paths} MODEL.WEIGHTS "
            f"{data}/weights/R-50-rgb.pkl MODEL.RESNETS.STRIDE_IN_1X1 True DATALOADER.NUM_WORKERS 6"
        )
    return [
        f"{label}, K = {k}: {run} MODEL.DETR.NUM_GROUPS {k} MODEL.DEVICE {args.device}"
        for label, run in pairs.items()
        for k in GROUPS
    ]


def compare_trainings(args: argparse.Namespace, minutes: float) -> None:
    """Goes on with the sweep; its results stand beside those of the other tasks."""
    sweep = ["sweep", "--results", str(trainings_file(args.results)), "--out", str(args.out)]
    sweep += ["--minutes", f"{minutes:.2f}", "--seeds", *SEEDS]
    for run in list_trainings(args):
        sweep += ["--run", run]
    os.chdir(CONFIGS.parent)
    commands.run(["analyze", *sweep, *args.opts])


def trainings_file(results: Path) -> Path:
    """Where the trainings' results stand."""
    return results.resolve().with_name(f"{results.stem}_training.json")


def write_json(path: Path, results: dict) -> None:
    """An interrupted write leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    unfinished.replace(path)


def report(results: dict, trainings: list[Run]) -> str:
    """The tables of docs/results.md."""
    lines = ["| model | float32: equal queries | error of gradients | bfloat16: equal queries "]
    lines[0] += "(the CPU's) | error of gradients (the CPU's) | steps |"
    lines.append("|---|---|---|---|---|---|")
    for name in MODELS:
        found = results.get("correctness", {}).get(name)
        lines.append(f"| {name} | {' | '.join(_correctness_cells(found))} |")
    for name, found in results.get("sampling", {}).items():
        errors = torch.tensor([x for x in found.values() if isinstance(x, float)])
        text = (
            found["error"] or f"{found['implementation']}, error {errors.max().item():.1e} at most"
        )
        lines += ["", f"Sampling of deformable attention on {name}: {text}."]
    for kind, title in (
        ("cost", "training step, float32"),
        ("bfloat16_cost", "training step, bfloat16"),
        ("evaluation", "inference"),
    ):
        lines += ["", f"| {title} | s, K = 1 | s, K = 11 | ratio | MiB, K = 1 | MiB, K = 11 |"]
        lines.append("|---|---|---|---|---|---|")
        for name in MODELS:
            lines.append(f"| {name} | {' | '.join(_cost_cells(results.get(kind, {}).get(name)))} |")
    lines += ["", "| training | seeds | AP |", "|---|---|---|"]
    for label, same in by_label(trainings).items():
        ap = mean_and_spread([run.final_ap for run in same])
        lines.append(f"| {label} | {len(same)} | {ap} |")
    if not trainings:
        lines.append(f"| all | 0 | {MISSING} |")
    origins = {
        f"{r['machine']}, torch {r['versions']['torch']}, {r['date']}"
        for records in results.values()
        for r in records.values()
    }
    return "\n".join([*lines, "", f"Measured on: {'; '.join(sorted(origins)) or MISSING}."])


def _correctness_cells(found: dict | None) -> list[str]:
    if found is None or found["error"]:
        return [found["error"].split(":")[0] if found else MISSING] * 5
    kinds = (*CLOSE, ROUNDED)
    equal = {kind: f"{100 * found[f'{kind}: equal outputs']:.1f} %" for kind in kinds}
    error = {kind: f"{found[f'{kind}: error of gradients']:.1e}" for kind in kinds}
    cells = [equal["float32"], error["float32"]]
    cells += [f"{x['bfloat16']} ({x[ROUNDED]})" for x in (equal, error)]
    steps = all(found[f"{precision}: finite step"] for precision in CLOSE)
    return [*cells, "finite" if steps else "not finite"]


def _cost_cells(found: dict | None) -> list[str]:
    if found is None:
        return [MISSING] * 5
    failed = (found["error"] or "").split(":")[0]
    costs = [found.get(f"K = {k}") for k in GROUPS]
    seconds = [f"{cost['seconds']:.3f}" if cost else failed for cost in costs]
    memory = [f"{cost['peak MiB']:.0f}" if cost else failed for cost in costs]
    ratio = f"{costs[1]['seconds'] / costs[0]['seconds']:.2f}" if all(costs) else failed
    return [*seconds, ratio, *memory]


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
    parser.add_argument("--task-minutes", type=float, default=4, help="a task is ended then")
    parser.add_argument("--only", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path("output/gpu_campaign"))
    parser.add_argument("--data", type=Path, help="folder with bccd/ and weights/")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--image-size", type=int, nargs=2, default=[800, 1333])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--report", type=Path, help="a Markdown file whose tables to renew")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides: KEY VALUE ...")
    args = parser.parse_args(argv)
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    if args.report:
        trainings = trainings_file(args.results)
        runs = read_runs(trainings) if trainings.is_file() else []
        insert_report(args.report, report(results, runs))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this machine has no CUDA device")
    start = time.monotonic()
    run_missing(args, results)
    left = args.minutes - (time.monotonic() - start) / 60
    if "training" in args.only and left > 0:
        compare_trainings(args, left)


if __name__ == "__main__":
    main()
