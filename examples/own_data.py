"""A data set and a mapper of your own: python examples/own_data.py [KEY VALUE ...]"""

import csv
import sys

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from groupdetr_d2 import Trainer, build_training_loader, model_zoo


def load():  # squares.csv has a line for each object: file,x0,y0,x1,y1
    images = {}
    for name, *corners in csv.reader(open("squares.csv")):
        image = {"file_name": name, "image_id": name, "height": 128, "width": 128}
        box = {"bbox": [*map(float, corners)], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        images.setdefault(name, {**image, "annotations": []})["annotations"].append(box)
    return list(images.values())


class OwnTrainer(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):  # this loader seeds the mapper, so that a resume is exact
        augmentations = [T.RandomBrightness(0.8, 1.2), T.RandomFlip()]
        return build_training_loader(cfg, DatasetMapper(cfg, augmentations=augmentations))


DatasetCatalog.register("squares", load)
MetadataCatalog.get("squares").thing_classes = ["square"]
cfg = model_zoo.get_config("quick_start/group_conditional_detr_shapes.yaml")
cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.MODEL.DETR.NUM_CLASSES = ("squares",), ("squares",), 1
cfg.merge_from_list(sys.argv[1:])
OwnTrainer(cfg).train()
