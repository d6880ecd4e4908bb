"""The commands as functions: train, evaluate and export from Python.

::

    import groupdetr_d2

    run = groupdetr_d2.train("group_conditional_detr_shapes", epochs=2, output="output/first")
    run.metrics  # the numbers of the last evaluation, by name
    found = run.predictor()("image.jpg")

Arguments are called like the options of the commands. Whatever else is given is an override of the
configuration: a short name of `SHORT_NAMES`, or a key, as in ``**{"SOLVER.BASE_LR": 1e-4}``. What a
command would print as an error is raised as a :class:`UserError`.
"""

import difflib
import json
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from .checkpoint.hub import is_address
from .checkpoint.hub_weights import local_file
from .checkpoint.restoring import config_of, read_checkpoint
from .commands import commands_by_name
from .config import build_config
from .engine.launch import launch
from .engine.main import main
from .engine.memory import keep_freed_memory
from .errors import UserError
from .evaluation.metrics_file import read_metrics
from .inference.predictor import Predictor

SHORT_NAMES = {
    "output": "OUTPUT_DIR",
    "weights": "MODEL.WEIGHTS",
    "device": "MODEL.DEVICE",
    "seed": "SEED",
    "epochs": "SOLVER.EPOCHS",
    "iterations": "SOLVER.MAX_ITER",
    "batch_size": "SOLVER.IMS_PER_BATCH",
    "learning_rate": "SOLVER.BASE_LR",
    "workers": "DATALOADER.NUM_WORKERS",
    "num_groups": "MODEL.DETR.NUM_GROUPS",
    "num_queries": "MODEL.DETR.NUM_OBJECT_QUERIES",
}
PATHS = ("train_json", "train_images", "val_json", "val_images")


@dataclass(frozen=True)
class TrainedRun:
    """The folder of a training.

    Attributes:
        metrics: the numbers of the last evaluation by their names in metrics.json; empty if there
            was none.
    """

    folder: Path
    metrics: dict[str, float]

    @property
    def weights(self) -> Path:
        """The best checkpoint by the task's metric; the last one if nothing was evaluated."""
        best = self.folder / "model_best.pth"
        return best if best.is_file() else self.folder / "model_final.pth"

    @property
    def history(self) -> list[dict]:
        """The records of metrics.json: losses, rates and results by "iteration"."""
        return read_metrics(self.folder)

    def predictor(self, **options: Any) -> Predictor:
        """Builds the predictor of :attr:`weights`; see :class:`Predictor` for the options."""
        return Predictor(self.weights, **options)


def train(
    config: str | Path | CfgNode,
    *,
    train_json: str | Path = "",
    train_images: str | Path = "",
    val_json: str | Path = "",
    val_images: str | Path = "",
    resume: bool = False,
    num_gpus: int = 1,
    **overrides: Any,
) -> TrainedRun:
    """Trains a model, as `groupdetr-d2 train` does; returns when it has ended.

    Args:
        config: a yaml, the name of one under `configs/`, or a configuration.
        train_json, train_images: COCO annotations and image folder of one's own training set.
        val_json, val_images: those of its validation set.
        resume: whether to go on from the last checkpoint in the output folder.
        num_gpus: number of processes; more than one on this machine's GPUs, or on a CPU.
        overrides: names of `SHORT_NAMES` or keys of the configuration.

    Raises:
        UserError: what a user can mend, such as wrong annotations or a misspelt key.
    """
    paths = dict(zip(PATHS, (train_json, train_images, val_json, val_images), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        args = _train_arguments(config, paths, folder, overrides)
        args.resume, args.num_gpus = resume, num_gpus
        output = Path(build_config(args.config_file, args.opts).OUTPUT_DIR)
        return TrainedRun(output, _run(args))


def evaluate(
    weights: str | Path,
    *,
    config: str | Path | CfgNode | None = None,
    val_json: str | Path = "",
    val_images: str | Path = "",
    num_gpus: int = 1,
    **overrides: Any,
) -> dict[str, float]:
    """Evaluates a checkpoint, as `groupdetr-d2 train --eval-only` does; writes a report, too.

    Args:
        weights: the checkpoint, or a model of the Hugging Face hub, hf://owner/name.
        config: see :func:`train`; that of the checkpoint if not given.
        val_json, val_images: COCO annotations and image folder of one's own set; the test set of
            the configuration if not given.
        overrides: see :func:`train`; "batch_size" is that of the evaluation here. "output" is the
            checkpoint's folder if not given, "output/evaluation" for a model of the hub.

    Returns:
        the numbers by their names in metrics.json.

    Raises:
        UserError: what a user can mend, such as a file that is no checkpoint.
    """
    if "batch_size" in overrides:
        overrides["TEST.IMS_PER_BATCH"] = overrides.pop("batch_size")
    if config is None:
        file = local_file(weights)
        config = config_of(read_checkpoint(file), file)
    own = "output/evaluation" if is_address(weights) else Path(weights).parent
    overrides.setdefault("OUTPUT_DIR", overrides.pop("output", own))
    paths = {"val_json": val_json, "val_images": val_images}
    with tempfile.TemporaryDirectory() as folder:
        overrides["MODEL.WEIGHTS"] = str(weights)
        args = _train_arguments(config, paths, folder, overrides)
        args.eval_only, args.num_gpus = True, num_gpus
        return _run(args)


def export(weights: str | Path, out: str | Path, **options: Any) -> Path:
    """Exports a checkpoint to a file, as `groupdetr-d2 export` does.

    Args:
        weights: the checkpoint.
        out: the file to write.
        options: the options of the command with underscores, such as ``image_size=(480, 640)``;
            other names are overrides, see :func:`train`.

    Returns:
        `out`.

    Raises:
        UserError: an option does not exist, or the model cannot be exported.
    """
    module = commands_by_name()["export"]
    args = _defaults(module.add_arguments)
    args.weights, args.out = str(weights), str(out)
    known = vars(args).keys() - {"opts"}
    for name in options.keys() & known:
        setattr(args, name, options[name])
    args.opts = _pairs({k: x for k, x in options.items() if k not in known}, known)
    module.run(args)
    return Path(out)


def _train_arguments(
    config: str | Path | CfgNode,
    paths: Mapping[str, str | Path],
    folder: str,
    overrides: Mapping[str, Any],
) -> Namespace:
    """Makes the arguments of the command; a configuration is written to a file in `folder`."""
    args = _defaults(commands_by_name()["train"].add_arguments)
    if isinstance(config, CfgNode):
        path = Path(folder, "config.yaml")
        path.write_text(config.dump())
        config = path
    args.config_file = str(config)
    for name, own in paths.items():
        setattr(args, name, str(own or ""))
    args.opts = _pairs(overrides, ())
    args.results = str(Path(folder, "results.json"))
    return args


def _defaults(add_arguments: Callable[[ArgumentParser], None]) -> Namespace:
    """Returns a command's arguments as if none were given, even where one has to be."""
    parser = ArgumentParser()
    add_arguments(parser)
    return Namespace(
        **{x.dest: parser.get_default(x.dest) for x in parser._actions if x.dest != "help"}
    )


def _pairs(overrides: Mapping[str, Any], options: Any) -> list:
    """Makes the configuration's overrides, ["KEY", value, ...], of keyword arguments.

    Raises:
        UserError: a name is neither short nor a key.
    """
    opts: list = []
    for name, value in overrides.items():
        if name not in SHORT_NAMES and name != name.upper():
            near = difflib.get_close_matches(name, [*SHORT_NAMES, *options], n=3, cutoff=0)
            raise UserError(
                f"{name} is no option; near names: {', '.join(near)}. Keys of the configuration "
                'are given as **{"SOLVER.BASE_LR": 1e-4}'
            )
        opts += [SHORT_NAMES.get(name, name), str(value) if isinstance(value, Path) else value]
    return opts


def _run(args: Namespace) -> dict[str, float]:
    """Runs the command, in this process if it is one; returns what was evaluated."""
    if args.num_gpus == 1:
        if not torch.cuda.is_available():
            keep_freed_memory()
        _main(args)
    else:
        try:
            launch(_main, args)
        except SystemExit as end:
            raise UserError(f"the processes have ended: {end}") from end
    return json.loads(Path(args.results).read_text())


def _main(args: Namespace) -> None:
    """Leaves the results in a file, which outlives the process."""
    results = main(args) or {}
    if comm.is_main_process():
        flat = {
            f"{task}/{name}": float(number)
            for task, numbers in results.items()
            for name, number in numbers.items()
        }
        Path(args.results).write_text(json.dumps(flat))
