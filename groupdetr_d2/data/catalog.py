"""Registered data sets as columns, whatever they were registered from.

Sets with an annotation file in COCO's format are read by coco_file.py rather than by Detectron2's
loader, which reads the file twice as slowly into several gigabytes, and believes what it says.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_COCO
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools import mask as coco_mask

from .checks import DatasetError, check_fields, check_registered
from .coco_columns import CocoColumns, CocoImages, columns_of, find_in_columns, is_bad
from .coco_file import read_columns
from .coco_rules import Finding, find_relations, read_table
from .missing_files import check_files
from .segmentations import compressed, json_texts

logger = logging.getLogger(__name__)
IMAGE_FIELDS = ("file_name", "height", "width")


_CHECKED: dict[tuple, CocoImages] = {}  # sets that were checked in this process


def images_of(name: str, *, is_evaluated: bool = False, with_masks: bool = False) -> CocoImages:
    """Returns the images of a registered data set, checked, without bad boxes where they may go.

    Bad boxes of the sets that Detectron2 registers itself are known and are left out; those of
    one's own are an error unless DATASETS.CUSTOM.BAD_BOXES is "drop". A set is checked, and what is
    odd about it is logged, once in a process.

    Args:
        is_evaluated: whether the set is one to evaluate with, which may lack objects.
        with_masks: whether masks are read, and checked, too.

    Raises:
        DatasetError: naming the file or the set, the first thing that is wrong, and the remedy.
    """
    check_registered([name])
    key = (name, is_evaluated, with_masks, *_state_of(name))
    if key not in _CHECKED:
        _CHECKED[key] = _checked_images(name, is_evaluated=is_evaluated, with_masks=with_masks)
    return _CHECKED[key]


def _state_of(name: str) -> tuple:
    """Returns what changes when a set does: its file, or the function that gives it."""
    metadata, json_file = MetadataCatalog.get(name), json_file_of(name)
    drops, root = metadata.get("bad_boxes"), metadata.get("image_root")
    if json_file is None or not os.path.isfile(json_file):
        return DatasetCatalog[name], tuple(metadata.get("thing_classes") or ()), drops
    state = os.stat(json_file)
    return json_file, state.st_mtime_ns, state.st_size, root, drops


def _checked_images(name: str, *, is_evaluated: bool, with_masks: bool) -> CocoImages:
    source = json_file_of(name) or f"data set {name}"
    columns = columns_of_set(name, with_masks=with_masks)
    tolerated = _tolerated(name, is_evaluated=is_evaluated)
    metadata = MetadataCatalog.get(name)
    is_examined = metadata.get("is_examined", False)  # by what has made its file
    for finding in () if is_examined else find_in_columns(columns):
        if finding.is_error and finding.kind not in tolerated:
            raise DatasetError(f"{source}: {finding.message()}")
        if not metadata.get("is_generated", False):
            _warn(source, finding)
    bad = is_bad(columns)
    images = CocoImages(columns.without(bad) if bad.any() else columns, image_root_of(name))
    if comm.is_main_process():  # one process asks the file system for every image
        check_files(name, images, may_lack=is_examined)
    return images


def _tolerated(name: str, *, is_evaluated: bool) -> set[str]:
    """Lists the kinds of errors that do not stop a training on a set.

    Bad boxes are left out unless the configuration says otherwise; objects without a mask only
    where it says so, and in Detectron2's own sets, which are known.
    """
    choice = MetadataCatalog.get(name).get("bad_boxes")
    kinds = {
        "boxes": choice != "error",
        "masks": choice == "drop" or any(name in sets for sets in _PREDEFINED_SPLITS_COCO.values()),
        "nothing": is_evaluated,
    }
    return {kind for kind, is_tolerated in kinds.items() if is_tolerated}


def _warn(source: str, finding: Finding) -> None:
    number = f"{len(finding.examples)} " if finding.examples else ""
    first = f", {finding.examples[0]} for one" if finding.examples else ""
    left_out = ". They are left out"
    what = {"boxes": left_out, "masks": left_out, "nothing": ": AP cannot be computed"}
    text = what.get(finding.kind, "") if finding.is_error else ""
    logger.warning("%s: %s%s%s%s", source, number, finding.text, first, text)


def columns_of_set(name: str, *, with_masks: bool = False) -> CocoColumns:
    """Reads the columns of a registered data set, with what is wrong with its boxes.

    Args:
        with_masks: whether masks are read, too.

    Raises:
        DatasetError: naming the file or the set, the first thing that is wrong, and the remedy.
    """
    json_file = json_file_of(name)
    if json_file is None:
        return _columns_of_dicts(name, with_masks)
    prepare = MetadataCatalog.get(name).get("prepare")
    if prepare is not None:  # a generated set
        prepare()
    check_json_file(name, json_file)
    columns = read_columns(json_file, with_masks=with_masks)
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        places = {identity: i for i, identity in enumerate(columns.category_ids)}
        metadata.thing_dataset_id_to_contiguous_id = places
    known = metadata.get("thing_classes")
    if known is None:
        metadata.thing_classes = list(columns.class_names)
    elif list(known) != list(columns.class_names):
        raise DatasetError(
            f"{json_file} has the classes {list(columns.class_names)[:20]}, and data set {name} is "
            f"registered with {list(known)[:20]}"
        )
    return columns


def json_file_of(name: str) -> str | None:
    """The annotation file of a set that `register_coco_instances` or this package registered."""
    metadata = MetadataCatalog.get(name)
    is_coco = metadata.get("evaluator_type") == "coco" and metadata.get("image_root") is not None
    return metadata.get("json_file") if is_coco else None


def image_root_of(name: str) -> str:
    """The folder that file names start from; empty where they are whole paths."""
    return MetadataCatalog.get(name).image_root if json_file_of(name) else ""


def _columns_of_dicts(name: str, with_masks: bool) -> CocoColumns:
    """Makes columns of the dataset dicts that a function of the user's own returns."""
    dicts: Sequence[dict] = DatasetCatalog.get(name)
    check_fields(name, dicts)
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None:
        raise DatasetError(
            f"data set {name} has no class names: give it some where it is registered, "
            f"MetadataCatalog.get({name!r}).set(thing_classes=[...])"
        )
    annotations: list[dict] = []
    for d in dicts:
        for a in d.get("annotations", ()):
            box = _as_xywh(name, a)
            fields = {"bbox": box, "category_id": plain_number(a["category_id"])}
            number = {"id": len(annotations), "image_id": plain_number(d["image_id"])}
            crowd = {"iscrowd": plain_number(a.get("iscrowd", 0)), "area": 0}
            annotations.append({**fields, **number, **crowd})
    images = [
        {"id": plain_number(d["image_id"]), **{k: plain_number(d[k]) for k in IMAGE_FIELDS}}
        for d in dicts
    ]
    categories = [{"id": i, "name": str(x)} for i, x in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    table, findings = read_table(content)
    if not findings:
        findings = list(find_relations(table))
    for finding in findings:
        raise DatasetError(f"data set {name}: {finding.message()}")
    columns = columns_of(table, _masks_of(dicts) if with_masks else None)
    columns.areas[:] = columns.boxes[:, 2] * columns.boxes[:, 3]
    if columns.segmentations is not None:
        good = np.flatnonzero(columns.segmentations.problems == 0)
        sizes = columns.sizes[columns.image_of]
        for i in good:
            code = compressed(columns.segmentations[i], (int(sizes[i, 1]), int(sizes[i, 0])))
            columns.areas[i] = coco_mask.area(code)
    return columns


def _masks_of(dicts: Sequence[dict]) -> list[bytes]:
    return json_texts(a.get("segmentation") for d in dicts for a in d.get("annotations", ()))


def _as_xywh(name: str, annotation: dict) -> list[float]:
    """The box of an annotation as x, y, width, height.

    Raises:
        DatasetError: its mode is none of upright boxes.
    """
    box = [plain_number(x) for x in annotation["bbox"]]
    try:
        return list(BoxMode.convert(box, BoxMode(annotation["bbox_mode"]), BoxMode.XYWH_ABS))
    except (NotImplementedError, AssertionError, ValueError) as error:
        raise DatasetError(
            f"data set {name}: the box {box} of mode {annotation['bbox_mode']} is no upright box: "
            "BoxMode.XYXY_ABS and XYWH_ABS are"
        ) from error


def plain_number(value: Any) -> Any:
    """Makes Python's own of numpy's and PyTorch's numbers."""
    return value.item() if isinstance(value, (np.generic, torch.Tensor)) else value


def check_json_file(name: str, json_file: str) -> None:
    """Checks that the annotation file of a data set is there.

    Raises:
        DatasetError: naming the set and the file.
    """
    remedy = MetadataCatalog.get(name).get("remedy")
    if not os.path.isfile(json_file) and remedy:
        raise DatasetError(
            f"data set {name}: {json_file} does not exist. {remedy}; $DETECTRON2_DATASETS is "
            f"{os.getenv('DETECTRON2_DATASETS', 'datasets')}"
        )
    if not os.path.isfile(json_file):
        raise DatasetError(
            f"data set {name}: {json_file} does not exist. Set $DETECTRON2_DATASETS (now "
            f"{os.getenv('DETECTRON2_DATASETS', 'datasets')}) to the folder that holds coco/, or "
            "name your own data with --train-json and so on"
        )
