"""The description of a model: task, groups, parameters, FLOPs, image sizes, schedule, data sets."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

from ..checkpoint.loading_report import part_of
from ..checkpoint.restoring import config_of, read_checkpoint
from ..checkpoint.stripping import describe_stripping
from ..config import build_config, override
from ..config.files import find_config
from ..config.listing import TASKS, epochs_of, paper_of
from ..engine.freezing import freeze
from ..modeling.meta_arch import task_of
from .step_cost import count_flops

OBJECTS = 7  # of an image, as many as COCO's have


def info(args: argparse.Namespace) -> int:
    """Prints what a configuration, or that of a checkpoint, makes."""
    cfg, name, about = read_source(args)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    freeze(model, cfg.MODEL.FREEZE)
    rows = [("model", name), *about, *describe(cfg), ("layers", describe_layers(model, cfg))]
    if not args.no_flops:
        rows += list(describe_flops(cfg))
    sys.stdout.write(tabulate(rows, tablefmt="plain", disable_numparse=True) + "\n\n")
    headers = ("parameters of", "M", "M trained")
    table = tabulate(count_parameters(model), headers, tablefmt="simple", floatfmt=".2f")
    sys.stdout.write(table + "\n")
    return 0


def read_source(args: argparse.Namespace) -> tuple[CfgNode, str, list[tuple[str, str]]]:
    """Reads the configuration, and what its source says besides: figures of the paper, a state."""
    if args.config_file:
        file = find_config(args.config_file)
        cfg = build_config(file, args.opts)
        paper, table = paper_of(file)
        return cfg, args.config_file, [("paper", f"{paper} ({table})")] if paper else []
    content = read_checkpoint(args.weights)
    cfg = config_of(content, args.weights)
    override(cfg, args.opts)
    iteration = content.get("iteration")
    note = describe_stripping(content["run"])
    about = [("checkpoint", note)] if note else []
    if iteration is not None:
        about.append(("checkpoint", f"after {iteration + 1} of {cfg.SOLVER.MAX_ITER} iterations"))
    return cfg, args.weights, about


def describe(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Yields names and values of what the configuration alone says."""
    detr, solver = cfg.MODEL.DETR, cfg.SOLVER
    architecture = cfg.MODEL.META_ARCHITECTURE
    kind = TASKS.get(architecture, task_of(cfg).kind)
    yield "task", f"{kind} ({architecture}, {detr.VARIANT}), {detr.NUM_CLASSES} classes"
    denoising = detr.DENOISING.NUM_QUERIES
    added = f", {denoising} of denoising (DENOISING.NUM_QUERIES)" if denoising else ""
    yield (
        "queries",
        f"training K = {detr.NUM_GROUPS} groups of N = {detr.NUM_OBJECT_QUERIES}{added}; inference "
        f"1 group of {detr.NUM_OBJECT_QUERIES}",
    )
    yield "backbone", f"{cfg.MODEL.BACKBONE.NAME}, weights {cfg.MODEL.WEIGHTS or 'random'}"
    yield from describe_sizes(cfg)
    epochs = solver.EPOCHS or epochs_of(yaml.safe_load(cfg.dump()), "")
    length = f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH}"
    steps = f", dropping at {', '.join(map(str, solver.STEPS))}" if solver.STEPS else ""
    yield (
        "schedule",
        f"{f'{solver.EPOCHS} epochs' if solver.EPOCHS else length}"
        f"{f' ({epochs:.4g} epochs)' if epochs and not solver.EPOCHS else ''}; {solver.OPTIMIZER}, "
        f"learning rate {solver.BASE_LR:g} (backbone x {solver.BACKBONE_MULTIPLIER:g})"
        f"{steps if solver.LR_SCHEDULER_NAME == 'WarmupMultiStepLR' else ', cosine'}",
    )
    for label, names in (("trained on", cfg.DATASETS.TRAIN), ("tested on", cfg.DATASETS.TEST)):
        yield label, ", ".join(map(describe_set, names)) or "nothing yet"


def describe_layers(model: nn.Module, cfg: CfgNode) -> str:
    """Counts the layers of decoder and encoder; not every model has the latter."""
    has_encoder = any(name.startswith("head.encoder.") for name, _ in model.named_parameters())
    encoder = f"encoder {cfg.MODEL.DETR.ENC_LAYERS}, " if has_encoder else ""
    return f"{encoder}decoder {cfg.MODEL.DETR.DEC_LAYERS}"


def describe_sizes(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Yields the sizes of images in training and test, in pixels."""
    size = cfg.INPUT
    if task_of(cfg).sees != "images":
        height, width = size.VIEWS.SIZE
        yield "images", f"{height} x {width} of each camera, in training and test"
        return
    shorter = sorted(set(size.MIN_SIZE_TRAIN))
    span = f"{shorter[0]} to {shorter[-1]}" if shorter[1:] else str(shorter[0])
    crop = ", cropped half of the time" if size.CROP.ENABLED else ""
    training = f"shorter side {span}, longer at most {size.MAX_SIZE_TRAIN}{crop}"
    if size.IMAGE_SIZE:
        training = f"{size.IMAGE_SIZE} x {size.IMAGE_SIZE}, large-scale jitter"
    yield "images, training", training
    yield "images, test", f"shorter side {size.MIN_SIZE_TEST}, longer at most {size.MAX_SIZE_TEST}"


def describe_set(name: str) -> str:
    """Names a data set, and says if its annotations are not where they are looked for."""
    file = MetadataCatalog.get(name).get("json_file") if name in MetadataCatalog else None
    return f"{name} (there is no {file})" if file and not Path(file).is_file() else name


def describe_flops(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Yields the FLOPs of inference and of a training step, of one input of the test's size."""
    size = test_size(cfg)
    what = "an image" if task_of(cfg).sees == "images" else "a keyframe"
    for label, backward in (("inference", False), ("training step", True)):
        flops = count_flops(cfg, size, 1, num_objects=OBJECTS, backward=backward)
        yield f"GFLOP, {label}", f"{flops / 1e9:.4g} for {what} of {size[0]} x {size[1]}"


def test_size(cfg: CfgNode) -> tuple[int, int]:
    """The height and width of a wide 4 : 3 image as the test resizes it."""
    if task_of(cfg).sees != "images":
        height, width = cfg.INPUT.VIEWS.SIZE
        return height, width
    shorter, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    scale = min(1.0, longest / (shorter * 4 / 3))
    return round(shorter * scale), round(shorter * scale * 4 / 3)


def count_parameters(model: nn.Module) -> list[tuple[str, float, float]]:
    """Counts parameters in millions by component and in all: the name, all, and trained ones."""
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, parameter in model.named_parameters():
        for key in (part_of(name), "all"):
            counts[key][0] += parameter.numel() / 1e6
            counts[key][1] += parameter.requires_grad * parameter.numel() / 1e6
    total = counts.pop("all")
    counts["all"] = total
    return [(name, number, trained) for name, (number, trained) in counts.items()]
