"""Data sets of one's own in COCO's format: read, checked and registered from the configuration."""

import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .checks import DatasetError
from .coco_columns import CocoImages
from .coco_file import read_columns


def register_custom_datasets(cfg) -> None:
    """Registers what DATASETS.CUSTOM names; sets DATASETS.TRAIN and TEST, and NUM_CLASSES.

    Raises:
        DatasetError: a json or folder is missing or malformed, or the two sets differ in classes.
    """
    custom = cfg.DATASETS.CUSTOM
    if custom.TRAIN_JSON:
        train = _register(custom.TRAIN_JSON, custom.TRAIN_IMAGES, "TRAIN", cfg)
        cfg.DATASETS.TRAIN = (train,)
    if custom.VAL_JSON:
        val = _register(custom.VAL_JSON, custom.VAL_IMAGES, "VAL", cfg)
        cfg.DATASETS.TEST = (val,)
    if custom.TRAIN_JSON and custom.VAL_JSON:
        _check_same_classes(custom.TRAIN_JSON, custom.VAL_JSON)
    elif custom.TRAIN_JSON:
        cfg.DATASETS.TEST = ()


def _register(json_file: str, image_root: str, which: str, cfg) -> str:
    if not image_root:
        flag = f"--{which.lower()}-images"
        raise DatasetError(f"{json_file} is given without its images: add {flag} FOLDER")
    if not os.path.isdir(image_root):
        raise DatasetError(f"the image folder {image_root} (of {json_file}) does not exist")
    classes = list(read_columns(json_file).class_names)
    cfg.MODEL.DETR.NUM_CLASSES = len(classes)
    name = f"{Path(json_file).stem}@{os.path.abspath(json_file)}"
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: list(CocoImages(read_columns(json_file), image_root)))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=classes,
        bad_boxes=cfg.DATASETS.CUSTOM.BAD_BOXES,
    )
    return name


def _check_same_classes(train_json: str, val_json: str) -> None:
    train, val = (list(read_columns(x).class_names) for x in (train_json, val_json))
    if train != val:
        raise DatasetError(
            f"{train_json} and {val_json} have different categories: {train} and {val}"
        )
