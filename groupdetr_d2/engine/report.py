"""The report that a training leaves in its folder, and the commands that it prints."""

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from tabulate import tabulate

from ..checkpoint.stripping import stripped_note
from ..config.files import train_command
from ..evaluation.evaluation_report import Evaluation
from ..evaluation.report_page import RunRecord, evaluation_sections, write_page
from ..evaluation.training_curves import draw_curves
from ..modeling.meta_arch import task_of
from .run_facts import Stopwatch, facts_of
from .run_folder import checkpoints_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LastEvaluation:
    """The latest evaluation of a training.

    Attributes:
        iterations: number of iterations done by then.
        results: Detectron2's, of the first process alone; the others have none.
        found: the detections on the first test set, in the first process.
        losses: those on all test sets, in the first process; empty if they were not computed.
    """

    iterations: int
    results: dict
    found: Evaluation | None
    losses: dict[str, float] = field(default_factory=dict)


class ReportHook(HookBase):
    """Writes the report at the end, and prints what to do next.

    It reads the trainer's `last_evaluation`.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg, self.folder = cfg, Path(cfg.OUTPUT_DIR)
        self.watch = Stopwatch()

    def before_train(self) -> None:
        """Starts the watch."""
        self.watch = Stopwatch(self.trainer.start_iter)

    def after_train(self) -> None:
        """Writes the report if the run reached its last iteration."""
        if self.trainer.iter >= self.trainer.max_iter:
            self.report()

    def report(self) -> None:
        """Writes the report, also of a run that ended early because it did not improve."""
        draw_curves(self.folder, self.folder / "curves.png", task_of(self.cfg).compared)
        last: LastEvaluation | None = self.trainer.last_evaluation
        results = last.results if last else {}
        if results:
            table = format_metrics(task_of(self.cfg).metrics_of(results))
            logger.info("results on %s:\n%s", self.cfg.DATASETS.TEST[0], table)
        has_ended = self.trainer.iter >= self.trainer.max_iter  # else a final file is older
        record = RunRecord(
            facts=facts_of(self.cfg, self.watch.facts(self.trainer.iterations_done)),
            losses=last.losses if last else {},
            labels=label_statistics(self.cfg, (*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST)),
            commands=next_commands(self.cfg, has_ended),
            config=self.cfg.dump(),
        )
        write_report(self.cfg, last.found if last else None, results, record)
        files = "report.html (everything in one page), its pictures, per_class.csv, metrics.json"
        logger.info("done; %s holds %s. To\n%s", self.folder, files, record.commands)


def next_commands(cfg: CfgNode, has_ended: bool = True) -> str:
    """The commands that evaluate, continue and predict, one per line.

    Where there is no run to continue, or a stripped checkpoint of it alone, one that fine-tunes
    takes its place.

    Args:
        has_ended: whether the training has reached its last iteration.
    """
    folder, python = shlex.quote(cfg.OUTPUT_DIR), shlex.quote(sys.executable)
    train = f"{python} {train_command()} --config-file {folder}/config.yaml"
    names = ("model_final.pth", "model_best.pth")[0 if has_ended else 1 :]
    own = [Path(cfg.OUTPUT_DIR) / name for name in names]
    found = next(filter(Path.is_file, own), cfg.MODEL.WEIGHTS)  # the latter after --eval-only
    weights = shlex.quote(str(found))
    sample = "IMAGE.jpg"
    if cfg.DATASETS.TEST:
        sample = shlex.quote(task_of(cfg).data.sample_of(cfg.DATASETS.TEST[0]))
    lines = {
        "evaluate": f"{train} --eval-only MODEL.WEIGHTS {weights}",
        "continue": f"{train} --resume {longer(cfg, has_ended)}",
        "predict": f"{python} -m groupdetr_d2 predict --weights {weights} --out {folder}/seen "
        f"{sample}",
    }
    note = stripped_note(found)
    if note or not checkpoints_in(cfg.OUTPUT_DIR):
        del lines["continue"]
        lines["fine-tune"] = f"{train} MODEL.WEIGHTS {weights} OUTPUT_DIR {folder}/tuned"
    if note:
        lines["note"] = f"{weights} is {note}"
    return "\n".join(f"  {what}: {line}" for what, line in lines.items())


def longer(cfg: CfgNode, has_ended: bool = True) -> str:
    """The override with which a training goes on: that of the key which has ended it, twice it."""
    solver = cfg.SOLVER
    if not has_ended:
        return f"SOLVER.PATIENCE {2 * solver.PATIENCE}"
    if solver.EPOCHS:  # MAX_ITER follows from it
        return f"SOLVER.EPOCHS {2 * solver.EPOCHS}"
    return f"SOLVER.MAX_ITER {2 * solver.MAX_ITER}"


def read_evaluation(cfg: CfgNode) -> Evaluation | None:
    """Reads what the last evaluation found on the first test set; None if it left no file."""
    if not cfg.DATASETS.TEST:
        return None
    file = results_file(cfg)
    if not file.is_file():
        return None
    dataset = cfg.DATASETS.TEST[0]
    images = task_of(cfg).read_results(dataset, file)
    return Evaluation.of(images, MetadataCatalog.get(dataset).thing_classes)


def results_file(cfg: CfgNode) -> Path:
    """The file in which the evaluator leaves the detections on the first test set."""
    return Path(cfg.OUTPUT_DIR, "inference", task_of(cfg).results_file)


def label_statistics(cfg: CfgNode, names: Sequence[str]) -> dict[str, list[dict]]:
    """Computes the label statistics of data sets; one that cannot be read again is left out."""
    found = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = task_of(cfg).data.label_rows(name)
        except Exception as error:  # the report of a training is worth more than these
            logger.warning("%s: no label statistics (%r)", name, error)
    return found


def write_report(cfg: CfgNode, found: Evaluation | None, results: dict, record: RunRecord) -> None:
    """Writes `report.html`, and the table and the pictures that it shows."""
    folder, task = Path(cfg.OUTPUT_DIR), task_of(cfg)
    sections: dict[str, str] = {}
    if found and results:
        sections = evaluation_sections(found, task.metrics_of(results), folder, task.presentation)
    title = f"{cfg.MODEL.DETR.VARIANT}, K = {cfg.MODEL.DETR.NUM_GROUPS}: {folder.name}"
    write_page(folder, title, sections, record)


def format_metrics(metrics: dict[str, float]) -> str:
    """Formats the evaluator's numbers as a table."""
    rows = [(name, f"{value:.1f}") for name, value in metrics.items()]
    return tabulate(rows, headers=("metric", "value"), tablefmt="simple")
