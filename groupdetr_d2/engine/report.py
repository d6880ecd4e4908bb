"""What a finished training leaves in its folder and says."""

import logging
import shlex
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from tabulate import tabulate

from ..checkpoint.files import read_file, write_safely
from ..data.loader import TrainingSet, build_train_loader
from ..evaluation import html_report
from ..evaluation.drawing import draw_curves, draw_tile, sheet
from ..evaluation.evaluation_report import Evaluation, results_file_of, write_evaluation
from ..tasks.task import task_of

logger = logging.getLogger(__name__)
FIRST_BATCHES, FIRST_IMAGES = 2, 16
PICTURES = {
    "curves.png": "Training",
    "predictions.png": "Worst images first: truth and predictions",
    "pr_curve.png": "Precision and recall",
    "f1_curve.png": "F1 and the threshold",
    "confusion_matrix.png": "Confusion",
    "first_batches.jpg": "The first training batches, as the model saw them",
}


class ReportHook(HookBase):
    """Draws the first batches; at the end writes the report, and prints what to do next.

    The results of evaluations are in the trainer's `_last_eval_results` and `last_evaluation`.
    """

    def __init__(self, cfg):
        self.cfg, self.folder = cfg, Path(cfg.OUTPUT_DIR)

    def before_train(self):
        """Where most mistakes in data and augmentation can be seen."""
        if self.trainer.start_iter == 0:
            picture = draw_first_batches(self.cfg, self.trainer.training_set)
            cv2.imwrite(str(self.folder / "first_batches.jpg"), picture)

    def after_train(self):
        """Only of a run that came to its end."""
        if self.trainer.iter >= self.trainer.max_iter:
            self.report()

    def report(self):
        """Also of a run that ended early because it got no better."""
        draw_curves(self.folder, self.folder / "curves.png", task_of(self.cfg).metric)
        results = getattr(self.trainer, "_last_eval_results", None)
        evaluation = self.trainer.last_evaluation
        if results:
            logger.info("results on %s:\n%s", self.cfg.DATASETS.TEST[0], format_results(results))
        has_ended = self.trainer.iter >= self.trainer.max_iter  # else a final file is of before
        if evaluation and has_ended:
            store_threshold(self.folder / "model_final.pth", evaluation.threshold)
        commands = next_commands(self.cfg, has_ended)
        write_report(self.cfg, evaluation, results, commands)
        files = "report.html (everything in one page), its pictures, per_class.csv, metrics.json"
        logger.info("done; %s holds %s. To\n%s", self.folder, files, commands)


def next_commands(cfg, has_ended: bool = True) -> str:
    """How to evaluate, continue and predict."""
    folder = shlex.quote(cfg.OUTPUT_DIR)
    python = sys.executable
    train = f"{python} train_net.py --config-file {folder}/config.yaml"
    names = ("model_final.pth", "model_best.pth")[0 if has_ended else 1 :]
    own = [Path(cfg.OUTPUT_DIR) / name for name in names]
    found = next(filter(Path.is_file, own), cfg.MODEL.WEIGHTS)  # the latter after --eval-only
    weights = shlex.quote(str(found))
    sample = "IMAGE.jpg"
    if cfg.DATASETS.TEST:
        sample = shlex.quote(DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]["file_name"])
    lines = {
        "evaluate": f"{train} --eval-only MODEL.WEIGHTS {weights}",
        "continue": f"{train} --resume SOLVER.MAX_ITER {2 * cfg.SOLVER.MAX_ITER}",
        "predict": f"{python} -m groupdetr_d2 predict --weights {weights} --out {folder}/seen "
        f"{sample}",
    }
    return "\n".join(f"  {what}: {line}" for what, line in lines.items())


def evaluate_results_file(cfg) -> Evaluation | None:
    """What the last evaluation found on the first test set."""
    if not cfg.DATASETS.TEST:
        return None
    return Evaluation.of(task_of(cfg), cfg.DATASETS.TEST[0], results_file_of(cfg))


def box_metrics(results: dict) -> dict:
    """Of the first test set."""
    return results["bbox"] if "bbox" in results else next(iter(results.values()))["bbox"]


def write_report(cfg, evaluation: Evaluation | None, results: dict | None, commands: str) -> None:
    """`report.html`, the table and the pictures that it shows."""
    folder = Path(cfg.OUTPUT_DIR)
    sections: dict[str, str] = {"Summary": "", "Classes": ""}
    if evaluation and results:
        metrics = box_metrics(results)
        rows = write_evaluation(evaluation, metrics, folder)
        precision, recall, f1 = evaluation.together.at(evaluation.threshold)
        numbers = {f" {name}": f"{metrics[name]:.1f}" for name in ("AP", "AP50", "AP75")}
        best = (
            f"<p>Best score threshold {evaluation.threshold:.3f} (F1 {f1:.3f}, precision "
            f"{precision:.3f}, recall {recall:.3f}); `predict` uses it by default.</p>"
        )
        sections["Summary"] = html_report.key_numbers(numbers) + best
        sections["Classes"] = html_report.table(rows)
    for name, title in PICTURES.items():
        if (folder / name).is_file():
            sections[title] = html_report.image_tag(folder / name, title)
    sections["Next"] = html_report.text(commands)
    sections["Configuration"] = html_report.folded("all keys", html_report.text(cfg.dump()))
    title = f"{cfg.MODEL.DETR.VARIANT}, K = {cfg.MODEL.DETR.NUM_GROUPS}: {folder.name}"
    (folder / "report.html").write_text(html_report.page(title, sections), encoding="utf-8")


def store_threshold(path: Path, threshold: float) -> None:
    """Puts the threshold into a checkpoint that was written before its evaluation."""
    if path.is_file():
        content = read_file(str(path))
        content["run"]["threshold"] = threshold
        write_safely(str(path), content)


def format_results(results: dict) -> str:
    """COCO's numbers as a table."""
    metrics = box_metrics(results)
    rows = [(name, f"{value:.1f}") for name, value in metrics.items()]
    return tabulate(rows, headers=("metric", "value"), tablefmt="simple")


def draw_first_batches(cfg, training_set: TrainingSet) -> np.ndarray:
    """The images that training begins with, augmented, with their boxes."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # the images do not depend on it
    task = task_of(cfg)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    tiles: list[np.ndarray] = []
    loader = build_train_loader(cfg, training_set, task.build_mapper(cfg, is_train=True))
    for batch, _ in zip(loader, range(FIRST_BATCHES), strict=False):
        for item in batch[: FIRST_IMAGES - len(tiles)]:
            image = item["image"].permute(1, 2, 0).numpy()
            image = image if cfg.INPUT.FORMAT == "BGR" else image[..., ::-1]
            title, truth = Path(item["file_name"]).name[-40:], item["instances"]
            draw = partial(task.draw, instances=truth, names=names)
            tiles.append(draw_tile(title, np.ascontiguousarray(image), draw))
    return sheet(tiles, columns=4)
