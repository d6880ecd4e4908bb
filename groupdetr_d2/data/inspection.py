"""Inspection of a data set before training: everything that is wrong with it, and its contents.

Training applies the same rules (coco_rules.py, checks.py) and stops at the first error; here the
images are opened too, and all findings are listed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image

from .checks import is_usable_box
from .coco_rules import Finding, find_errors, is_complete, read_json
from .image_file import ROTATED, orientation_of

SMALL, MEDIUM = 32**2, 96**2  # COCO's limits of area, in pixels


@dataclass
class Inspection:
    """The findings on a data set, and its numbers."""

    findings: list[Finding] = field(default_factory=list)
    numbers: dict = field(default_factory=dict)  # plain values, see `count`

    @property
    def has_errors(self) -> bool:
        """Whether training on the data set would stop or go wrong."""
        return any(finding.is_error for finding in self.findings)

    def add(self, is_error: bool, text: str, examples: Iterable) -> None:
        """Records a finding, if there are examples of it."""
        examples = [str(x) for x in examples]
        if examples:
            self.findings.append(Finding(is_error, text, examples))


def inspect_coco(
    json_file: str, image_root: str, *, num_queries: int = 300, decode: bool = True
) -> Inspection:
    """Checks annotations in COCO's format, and their images.

    Args:
        num_queries: of a group of the model that is to be trained.
        decode: whether every image is read to its end; else its header alone.

    Raises:
        DatasetError: the json cannot be read at all.
    """
    content, inspection = read_json(json_file), Inspection()
    inspection.findings += find_errors(content)
    if not is_complete(content):  # what follows reads these fields
        return inspection
    _check_boxes(content, inspection)
    _check_images(content["images"], Path(image_root), decode, inspection)
    _check_contents(content, num_queries, inspection)
    inspection.numbers = count(content)
    return inspection


def _check_boxes(content: dict, inspection: Inspection) -> None:
    sizes = {x["id"]: (x["file_name"], x["width"], x["height"]) for x in content["images"]}
    bad, over, seen, twice = [], [], set(), []
    for a in content["annotations"]:
        if a["image_id"] not in sizes:
            continue
        name, width, height = sizes[a["image_id"]]
        where, box = f"{name}, annotation {a['id']} {a['bbox']}", a["bbox"]
        if len(box) != 4 or not is_usable_box(box, BoxMode.XYWH_ABS, width, height):
            bad.append(where)
        elif min(box[:2]) < -1 or box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1:
            over.append(where)
        key = (a["image_id"], a["category_id"], *box)
        if key in seen:
            twice.append(where)
        seen.add(key)
    inspection.add(True, "boxes (x, y, w, h) not finite, without area or outside their image", bad)
    inspection.add(False, "boxes partly outside their image, which are cut off", over)
    inspection.add(False, "boxes given twice", twice)


def _check_images(images: list[dict], root: Path, decode: bool, inspection: Inspection) -> None:
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda image: read_size(root / image["file_name"], decode), images))
    missing: list[str] = []
    unreadable: list[str] = []
    other: list[str] = []
    for image, (size, problem) in zip(images, found, strict=True):
        name = image["file_name"]
        if problem:
            (missing if problem == "missing" else unreadable).append(
                name if problem == "missing" else f"{name} ({problem})"
            )
        elif size != (image["width"], image["height"]):
            other.append(
                f"{name} is {size[0]} x {size[1]}, not {image['width']} x {image['height']}"
            )
    inspection.add(True, f"images missing in {root}", missing)
    inspection.add(True, "images that cannot be read", unreadable)
    inspection.add(True, "images of another size than the json says (width x height)", other)


def read_size(path: Path, decode: bool) -> tuple[tuple[int, int] | None, str]:
    """Reads width and height, turned by EXIF as Detectron2 does, and what is wrong, if so."""
    if not path.is_file():
        return None, "missing"
    try:
        with Image.open(path) as image:
            size = image.size
            if decode:
                image.load()
            has_exif = decode or image.format != "PNG"  # looking for it decodes a PNG
            rotated = has_exif and orientation_of(image) in ROTATED
        return (size[::-1] if rotated else size), ""
    except Exception as error:  # an image library can raise anything
        return None, f"{type(error).__name__}: {error}"


def _check_contents(content: dict, num_queries: int, inspection: Inspection) -> None:
    objects: dict[int, int] = defaultdict(int)
    crowds: dict[int, int] = defaultdict(int)
    for a in content["annotations"]:
        (crowds if a["iscrowd"] else objects)[a["image_id"]] += 1
    names = {x["id"]: x["file_name"] for x in content["images"]}
    alone = [names[i] for i in crowds if i in names and not objects[i]]
    inspection.add(False, "images with crowds alone, which count as empty", alone)
    empty = [name for i, name in names.items() if not objects[i] and not crowds[i]]
    inspection.add(False, "images without objects, which train as background", empty)
    many = [f"{names[i]} ({n})" for i, n in objects.items() if i in names and n > num_queries]
    text = f"images with more objects than MODEL.DETR.NUM_OBJECT_QUERIES ({num_queries})"
    inspection.add(False, text, many)
    used = {a["category_id"] for a in content["annotations"]}
    unused = [c["name"] for c in content["categories"] if c["id"] not in used]
    inspection.add(False, "classes without any object", unused)
    repeated = Counter(c["name"] for c in content["categories"])
    inspection.add(False, "classes with the same name", [n for n, k in repeated.items() if k > 1])


def count(content: dict) -> dict:
    """Counts images, objects, classes, objects per image, and the sizes of boxes."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    classes = Counter(names.get(a["category_id"], "?") for a in content["annotations"])
    per_image = Counter(a["image_id"] for a in content["annotations"])
    numbers = [per_image.get(x["id"], 0) for x in content["images"]]
    sizes = {x["id"]: max(x["width"], x["height"]) for x in content["images"]}
    areas, sides = [], []
    for a in content["annotations"]:
        area = a["bbox"][2] * a["bbox"][3]
        if a["image_id"] in sizes and math.isfinite(area) and area > 0:
            areas.append(area)
            sides.append(area**0.5 / sizes[a["image_id"]])
    quantiles = np.quantile(sides, [0.05, 0.25, 0.5, 0.75, 0.95]) if sides else []
    return {
        "images": len(content["images"]),
        "objects": len(content["annotations"]),
        "classes": {names[i]: classes.get(names[i], 0) for i in sorted(names)},
        "objects per image": {
            "mean": float(np.mean(numbers)) if numbers else 0.0,
            "median": float(np.median(numbers)) if numbers else 0.0,
            "most": max(numbers, default=0),
        },
        "box sizes": {
            "small (< 32 x 32 pixels)": sum(a < SMALL for a in areas),
            "medium": sum(SMALL <= a < MEDIUM for a in areas),
            "large (> 96 x 96 pixels)": sum(a >= MEDIUM for a in areas),
        },
        "side of a box relative to its image (5, 25, 50, 75, 95 %)": [
            round(float(q), 4) for q in quantiles
        ],
    }
