"""What a finished training leaves in its folder and says."""

import logging
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.structures import BoxMode
from tabulate import tabulate

from ..data.loader import build_test_loader
from ..evaluation.drawing import draw_curves, draw_tile, sheet

logger = logging.getLogger(__name__)
SHOWN_IMAGES, SHOWN_SCORE = 8, 0.3


class ReportHook(HookBase):
    """Writes `curves.png` and `predictions.png`, prints the result table and what to do next."""

    def __init__(self, cfg, model):
        self.cfg, self.model = cfg, model
        self.folder = Path(cfg.OUTPUT_DIR)

    def after_train(self):
        """Only of a run that came to its end."""
        if self.trainer.iter >= self.trainer.max_iter:
            self.report()

    def report(self):
        """Also of a run that ended early because it got no better."""
        draw_curves(self.folder, self.folder / "curves.png")
        if self.cfg.DATASETS.TEST:
            picture = draw_predictions(self.cfg, self.model, self.cfg.DATASETS.TEST[0])
            cv2.imwrite(str(self.folder / "predictions.png"), picture)
        results = getattr(self.trainer, "_last_eval_results", None)
        if results:
            logger.info("results on %s:\n%s", self.cfg.DATASETS.TEST[0], format_results(results))
        logger.info("%s", self._commands())

    def _commands(self) -> str:
        folder = shlex.quote(str(self.folder))
        python = sys.executable
        train = f"{python} train_net.py --config-file {folder}/config.yaml"
        last = self.folder / "model_final.pth"
        weights = f"{folder}/{'model_final' if last.is_file() else 'model_best'}.pth"
        sample = "IMAGE.jpg"
        if self.cfg.DATASETS.TEST:
            sample = shlex.quote(DatasetCatalog.get(self.cfg.DATASETS.TEST[0])[0]["file_name"])
        lines = {
            "evaluate": f"{train} --eval-only MODEL.WEIGHTS {weights}",
            "continue": f"{train} --resume SOLVER.MAX_ITER {2 * self.cfg.SOLVER.MAX_ITER}",
            "predict": f"{python} -m groupdetr_d2 predict --weights {weights} --out {folder}/seen "
            f"{sample}",
        }
        files = "curves.png, predictions.png (truth left, predictions right), metrics.json"
        commands = "\n".join(f"  {what}: {line}" for what, line in lines.items())
        return f"done; {folder} holds {files}. To\n{commands}"


def format_results(results: dict) -> str:
    """COCO's numbers as a table."""
    metrics = results["bbox"] if "bbox" in results else next(iter(results.values()))["bbox"]
    rows = [(name, f"{value:.1f}") for name, value in metrics.items()]
    return tabulate(rows, headers=("metric", "value"), tablefmt="simple")


@torch.no_grad()
def draw_predictions(cfg, model, dataset_name: str) -> np.ndarray:
    """Ground truth beside predictions, for the first images of a data set."""
    truth = {d["image_id"]: d["annotations"] for d in DatasetCatalog.get(dataset_name)}
    names = MetadataCatalog.get(dataset_name).thing_classes
    was_training = model.training
    model.eval()
    tiles = []
    for batch, _ in zip(build_test_loader(cfg, dataset_name), range(SHOWN_IMAGES), strict=False):
        image = cv2.imread(batch[0]["file_name"])
        annotations = truth[batch[0]["image_id"]]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        classes = [a["category_id"] for a in annotations]
        tiles.append(draw_tile("truth", image, boxes, classes, names))
        found = model(batch)[0]["instances"].to("cpu")
        found = found[found.scores > SHOWN_SCORE]
        boxes, classes = found.pred_boxes.tensor, found.pred_classes
        tiles.append(draw_tile("predictions", image, boxes, classes, names, found.scores))
    model.train(was_training)
    return sheet(tiles, columns=4)
