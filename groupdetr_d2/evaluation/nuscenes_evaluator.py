"""The evaluator of 3D boxes on nuScenes: the official metrics of the detection benchmark."""

import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from ..data.nuscenes.evaluation_tables import check_evaluation
from ..data.nuscenes.names import CLASSES
from ..data.nuscenes.tables import Tables
from ..errors import UserError
from .nuscenes_devkit import check_devkit, detection_metrics, has_truth, tokens_of_split
from .nuscenes_results import FrameBoxes, accepted, records_of

logger = logging.getLogger(__name__)
RESULTS, SUMMARY = "nuscenes_results.json", "metrics_summary.json"
META = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": True,
}
# mean errors of true positives, and what the devkit calls them
ERRORS = {
    "mATE": "trans_err",
    "mASE": "scale_err",
    "mAOE": "orient_err",
    "mAVE": "vel_err",
    "mAAE": "attr_err",
}


class NuScenesEvaluator(DatasetEvaluator):
    """Computes nuScenes' detection score, and leaves the detections in the benchmark's format.

    Args:
        dataset: the registered name; its metadata has `nuscenes_root`, `nuscenes_version` and
            `nuscenes_split`, and `prepare` where the set is generated.
        folder: where `nuscenes_results.json` and the devkit's `metrics_summary.json` are written;
            None for nowhere.

    Raises:
        UserError: when nuscenes-devkit or the tables are missing, before anything is predicted.
    """

    def __init__(self, dataset: str, folder: str | None = None):
        metadata = MetadataCatalog.get(dataset)
        self.root, self.version = os.fspath(metadata.nuscenes_root), metadata.nuscenes_version
        self.split, self.folder = metadata.nuscenes_split, folder
        self.found: list[FrameBoxes] = []
        if comm.is_main_process():  # no other evaluates
            check_devkit()
            self._check_tables(dataset, metadata.get("prepare"))

    def _check_tables(self, dataset: str, prepare: Callable[[], object] | None) -> None:
        tables = Path(self.root, self.version)
        if prepare is not None and not tables.is_dir():
            prepare()
        if not tables.is_dir():
            raise UserError(
                f"{dataset} is evaluated with the tables of nuScenes, and {self.root} has no "
                f"folder {self.version}: put them there, or set DETECTRON2_DATASETS"
            )
        check_evaluation(Tables(self.root, self.version))

    def reset(self) -> None:
        """Forgets all detections."""
        self.found = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes in the detections on some keyframes.

        Args:
            inputs: each with "sample_token" and the motions "lidar2ego" and "ego2global" (4, 4).
            outputs: each with "instances": `pred_boxes3d` (M, 9), `scores` and `pred_classes` (M,).
        """
        for frame, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            found = FrameBoxes(
                token=frame["sample_token"],
                boxes=instances.pred_boxes3d.double().numpy(),
                scores=instances.scores.double().numpy(),
                classes=instances.pred_classes.numpy(),
                lidar2ego=np.asarray(frame["lidar2ego"], dtype=np.float64),
                ego2global=np.asarray(frame["ego2global"], dtype=np.float64),
            )
            self.found.append(accepted(found))

    def evaluate(self, img_ids: Sequence | None = None) -> dict:
        """Returns ``{"nuscenes": metrics}``; in other processes than the first it returns nothing.

        NDS, mAP and AP of classes are in percent; mATE is in metres, mASE is 1 - IoU, mAOE is in
        radians, mAVE in metres per second, mAAE is 1 - accuracy.

        Raises:
            UserError: only some keyframes are to be evaluated.
        """
        if img_ids is not None:
            raise UserError(
                "nuScenes is evaluated on whole splits: leave the number of keyframes out"
            )
        gathered = comm.gather(self.found, dst=0)
        if not comm.is_main_process():
            return {}
        found = {frame.token: frame for frame in itertools.chain(*gathered)}
        if self.folder:
            return {"nuscenes": self._metrics(found, Path(self.folder))}
        with tempfile.TemporaryDirectory() as folder:
            return {"nuscenes": self._metrics(found, Path(folder))}

    def _metrics(self, found: dict[str, FrameBoxes], folder: Path) -> dict[str, float]:
        """Writes both files and computes the metrics; 0 and errors of 1 where nothing is found."""
        tokens = tokens_of_split(self.root, self.version, self.split)
        self._warn_of_others(found, tokens)
        own = {token: found[token] for token in tokens if token in found}
        folder.mkdir(parents=True, exist_ok=True)
        write_results(folder / RESULTS, tokens, own)
        if not self._can_be_evaluated(own, tokens):
            (folder / SUMMARY).unlink(missing_ok=True)  # of an earlier evaluation
            return nothing_found()
        summary = detection_metrics(self.root, self.version, self.split, folder / RESULTS)
        (folder / SUMMARY).write_text(json.dumps({**summary, "meta": META}, indent=2))
        logger.info("%s of nuScenes:\n%s", self.split, table_of(summary))
        return metrics_of(summary)

    def _warn_of_others(self, found: dict[str, FrameBoxes], tokens: list[str]) -> None:
        own = set(tokens)
        absent, unknown = own - found.keys(), found.keys() - own
        if absent:
            logger.warning(
                "%d of %d keyframes of %s were not predicted, such as %s: they count as empty",
                *(len(absent), len(tokens), self.split, min(absent)),
            )
        if unknown:
            logger.warning(
                "%d keyframes are not of %s, such as %s: they do not count",
                *(len(unknown), self.split, min(unknown)),
            )

    def _can_be_evaluated(self, found: dict[str, FrameBoxes], tokens: list[str]) -> bool:
        """Tells whether there is anything that the devkit accepts, and warns if not."""
        if not any(len(frame.boxes) for frame in found.values()):
            logger.warning("nothing was found in %s: its metrics are 0, errors 1", self.split)
            return False
        if not has_truth(self.root, self.version, tokens):
            logger.warning("%s has no objects of the ten classes: its metrics are 0", self.split)
            return False
        return True


def write_results(file: Path, tokens: Sequence[str], found: dict[str, FrameBoxes]) -> None:
    """Writes a result file with these samples, one by one: all records at once take gigabytes."""
    with file.open("wb") as out:
        out.write(b'{"meta": %b, "results": {' % msgspec.json.encode(META))
        for i, token in enumerate(tokens):
            records = records_of(found[token]) if token in found else []
            comma = b",\n" if i else b"\n"
            out.write(comma + msgspec.json.encode(token) + b": " + msgspec.json.encode(records))
        out.write(b"}}\n")


def metrics_of(summary: dict) -> dict[str, float]:
    """Names the metrics of the devkit's summary as its papers do; scores are in percent."""
    scores = {"NDS": 100 * float(summary["nd_score"]), "mAP": 100 * float(summary["mean_ap"])}
    errors = {name: float(summary["tp_errors"][own]) for name, own in ERRORS.items()}
    by_class = {f"AP-{name}": 100 * float(summary["mean_dist_aps"][name]) for name in CLASSES}
    return {**scores, **errors, **by_class}


def nothing_found() -> dict[str, float]:
    """Returns the metrics of a detector that finds nothing, which the devkit does not take."""
    summary = {
        "nd_score": 0.0,
        "mean_ap": 0.0,
        "tp_errors": dict.fromkeys(ERRORS.values(), 1.0),
        "mean_dist_aps": dict.fromkeys(CLASSES, 0.0),
    }
    return metrics_of(summary)


def table_of(summary: dict) -> str:
    """Makes a table of AP in percent and errors, class by class, with NDS below."""
    metrics, own_errors = metrics_of(summary), summary["label_tp_errors"]
    rows = [
        [name, metrics[f"AP-{name}"], *(float(own_errors[name][e]) for e in ERRORS.values())]
        for name in CLASSES
    ]
    rows.append(["mean", metrics["mAP"], *(metrics[name] for name in ERRORS)])
    heads = ["class", "AP", *(name[1:] for name in ERRORS)]
    formats = ("", ".2f", *[".3f"] * len(ERRORS))
    table = tabulate(rows, headers=heads, tablefmt="pipe", floatfmt=formats)
    return f"{table}\nNDS {metrics['NDS']:.2f}, mAP {metrics['mAP']:.2f}"
