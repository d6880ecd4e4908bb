"""Data sets of one's own in COCO's format: read, checked and registered from the configuration."""

import json
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .checks import DatasetError

REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}


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
    classes = read_classes(json_file)
    cfg.MODEL.DETR.NUM_CLASSES = len(classes)
    name = f"{Path(json_file).stem}@{os.path.abspath(json_file)}"
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, json_file, image_root)
    MetadataCatalog.get(name).set(thing_classes=classes, bad_boxes=cfg.DATASETS.CUSTOM.BAD_BOXES)
    return name


def read_classes(json_file: str) -> list[str]:
    """Class names in the order of their category ids, after a check of the file's structure.

    Raises:
        DatasetError: naming the file, the first entry that is wrong, and the remedy.
    """
    content = read_json(json_file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DatasetError(f"{json_file} has no list {key!r}: it is not in COCO's format")
    for key, fields in REQUIRED.items():
        _check_fields(json_file, key, content[key], fields)
    categories = {c["id"]: c["name"] for c in content["categories"]}
    images = {image["id"] for image in content["images"]}
    if not categories or not images:
        raise DatasetError(f"{json_file} has no categories or no images")
    for what, key, known in (
        ("category", "category_id", categories),
        ("image", "image_id", images),
    ):
        wrong = [a for a in content["annotations"] if a[key] not in known]
        if wrong:
            raise DatasetError(
                f"{json_file}: {len(wrong)} annotations name an unknown {what}, the first is "
                f"annotation {wrong[0]['id']} with {key} {wrong[0][key]!r}. "
                f"Known {key}s: {sorted(known)[:20]}"
            )
    return [categories[i] for i in sorted(categories)]


def _check_fields(json_file: str, what: str, entries: list[dict], fields: tuple[str, ...]) -> None:
    """Every entry has the fields that training or COCO's evaluation reads, and an id of its own."""
    for field in fields:
        without = [entry for entry in entries if field not in entry]
        if without:
            raise DatasetError(
                f"{json_file}: {len(without)} of {len(entries)} {what} have no {field!r}, first "
                f"{str(without[0])[:200]}. Add it (annotations: bbox [x, y, width, height], area "
                "width x height, iscrowd 0)"
            )
    if len({entry["id"] for entry in entries}) < len(entries):
        raise DatasetError(f"{json_file}: some {what} share an id; every id must be unique")


def read_json(json_file: str) -> dict:
    """The object of a JSON file.

    Raises:
        DatasetError: it does not exist or is something else.
    """
    if not os.path.isfile(json_file):
        raise DatasetError(f"the annotation file {json_file} does not exist")
    try:
        content = json.loads(Path(json_file).read_text())
    except ValueError as error:
        raise DatasetError(f"{json_file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{json_file} is a JSON {type(content).__name__}, not COCO's object")
    return content


def _check_same_classes(train_json: str, val_json: str) -> None:
    train, val = read_classes(train_json), read_classes(val_json)
    if train != val:
        raise DatasetError(
            f"{train_json} and {val_json} have different categories: {train} and {val}"
        )
