"""The evaluator of boxes and masks on any registered data set."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from ..data.catalog import images_of
from ..data.segmentations import encode
from .coco_metrics import METRICS, DetectionColumns, coco_metrics, detections_counted

logger = logging.getLogger(__name__)
RESULTS = "coco_instances_results.json"
KINDS: tuple[tuple[Literal["bbox", "segm"], str], ...] = (("segm", "mask"), ("bbox", "box"))


class CocoEvaluator(DatasetEvaluator):
    """Computes COCO's AP and AR of boxes and masks, and leaves the detections in COCO's format.

    Args:
        dataset: the registered name.
        folder: where the detections are written, with the ids of the data set; None for nowhere.
        with_masks: whether detections have masks.
    """

    def __init__(self, dataset: str, folder: str | None = None, *, with_masks: bool = False):
        self.with_masks = with_masks
        self.truth = images_of(dataset, is_evaluated=True, with_masks=with_masks).columns
        self.folder = folder
        self.names = MetadataCatalog.get(dataset).thing_classes
        self.places = {identity: i for i, identity in enumerate(self.truth.image_ids)}
        self.found: list[tuple[np.ndarray, ...]] = []
        self.masks: list[list[dict]] = []  # of each image

    def reset(self) -> None:
        """Forgets all detections."""
        self.found, self.masks = [], []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes in the detections on some images."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.double().numpy()
            scores = instances.scores.double().numpy()
            corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
            place = np.full(len(boxes), self.places[image["image_id"]])
            self.found.append((place, instances.pred_classes.numpy(), corners, scores))
            if self.with_masks:
                self.masks.append(encode(instances.pred_masks.numpy()))

    def evaluate(self, img_ids: Sequence | None = None) -> dict:
        """Returns ``{"bbox": metrics}``, with masks ``{"segm": metrics, "bbox": metrics}``.

        In other processes than the first it returns nothing.

        Args:
            img_ids: ids of the images that count; all if not given.
        """
        gathered, masks = (comm.gather(x, dst=0) for x in (self.found, self.masks))
        if not comm.is_main_process():
            return {}
        parts = list(itertools.chain(*gathered))
        empty = (np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0))
        image_of, class_of, boxes, scores = map(np.concatenate, zip(empty, *parts, strict=True))
        codes = [x for part in masks for own in part for x in own] if self.with_masks else None
        columns = DetectionColumns(image_of, class_of, boxes, scores, codes)
        if self.folder:
            self.write(columns)
        counted = detections_counted(self.truth)
        if counted > 100:
            logger.info("an image has %d objects of a class: as many detections count", counted)
        images = None if img_ids is None else [self.places[x] for x in img_ids]
        results = {}
        for kind, title in KINDS[0 if self.with_masks else 1 :]:
            found = coco_metrics(self.truth, columns, self.names, kind=kind, images=images)
            table = create_small_table({name: found[name] for name in (*METRICS, "AR")})
            logger.info("%s AP:\n%s", title, table)
            results[kind] = found
        return results

    def write(self, columns: DetectionColumns) -> None:
        """Writes the detections with the data set's own ids."""
        image_ids, category_ids = self.truth.image_ids, self.truth.category_ids
        rows = zip(
            columns.image_of.tolist(),
            columns.class_of.tolist(),
            columns.boxes.tolist(),
            columns.scores.tolist(),
            strict=True,
        )
        records = [
            {
                "image_id": image_ids[image],
                "category_id": category_ids[category],
                "bbox": box,
                "score": score,
            }
            for image, category, box, score in rows
        ]
        for record, mask in zip(records, columns.masks or (), strict=False):
            record["segmentation"] = mask
        Path(str(self.folder)).mkdir(parents=True, exist_ok=True)
        Path(str(self.folder), RESULTS).write_bytes(msgspec.json.encode(records))
