"""YOLO-format folders as annotations in COCO's format.

A label file has a line an object, ``class cx cy w h`` relative to the image, or the points of a
polygon, ``class x0 y0 x1 y1 ...``, which become its mask. It lies beside its image with ``images``
replaced by ``labels`` in the path.
"""

import functools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.yaml_file import YamlError, load_mapping
from .checks import DatasetError
from .coco_columns import OUTSIDE
from .coco_rules import box_annotation
from .image_file import find_image_files
from .inspection import read_size
from .segmentations import measure

logger = logging.getLogger(__name__)
SPLITS = ("train", "val", "valid", "test")


@dataclass(frozen=True)
class Labels:
    """The format of label files.

    Attributes:
        names: of the classes.
        keypoints: the numbers that follow a box in a line, 0 for none.
    """

    names: list[str]
    keypoints: int = 0


def convert_yolo(folder: str | Path, out: str | Path) -> dict[str, Path]:
    """Writes ``<out>/<split>.json``; file names are relative to `folder`, the image folder.

    Returns:
        the json of each split that has images.

    Raises:
        DatasetError: naming the file and line, or what is missing.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise DatasetError(f"the YOLO folder {folder} does not exist")
    description = read_description(folder)
    labels = Labels(class_names(description, folder), keypoint_numbers(description, folder))
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, images in find_images(folder, description).items():
        if split == "test" and not has_labels(images):
            logger.warning("the images of the split test have no labels: it is left out")
            continue
        content = to_coco(folder, images, labels)
        written[split] = out / f"{split}.json"
        written[split].write_text(json.dumps(content))
    if not written:
        raise DatasetError(
            f"{folder} has no images where YOLO's format has them: images/ or <split>/images/, or "
            "what data.yaml names"
        )
    return written


def read_description(folder: Path) -> dict:
    """Reads the folder's data.yaml (or another .yaml); empty if there is none."""
    files = [folder / "data.yaml", *sorted(folder.glob("*.y*ml"))]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        return {}
    try:
        return load_mapping(file, most=1_000_000)
    except YamlError as error:
        raise DatasetError(str(error)) from error


def keypoint_numbers(description: dict, folder: Path) -> int:
    """The numbers of keypoints in a line of pose labels (kpt_shape), 0 without keypoints."""
    shape = description.get("kpt_shape", [0])
    numbers = shape if isinstance(shape, list) else [None]
    if not numbers or not all(isinstance(x, int) and x >= 0 for x in numbers):
        raise DatasetError(f"{folder}: kpt_shape is {shape!r}; it is two numbers, such as [17, 3]")
    return math.prod(numbers)


def class_names(description: dict, folder: Path) -> list[str]:
    """Finds the class names in data.yaml (a list, or a dictionary by number), or classes.txt."""
    names = description.get("names")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=str if _are_texts(names) else None)]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    for file in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if file.is_file():
            lines = file.read_text(errors="replace").splitlines()
            return [line.strip() for line in lines if line.strip()]
    raise DatasetError(f"{folder} has no class names: neither `names` in data.yaml nor classes.txt")


def find_images(folder: Path, description: dict) -> dict[str, list[Path]]:
    """Finds the images of each split; all are "train" where there are no splits."""
    found = {}
    path = description.get("path")
    root = folder / path if isinstance(path, str) else folder
    for split in SPLITS:
        named = description.get(split)
        places = [x for x in (named if isinstance(named, list) else [named]) if isinstance(x, str)]
        candidates = [root / p for p in places] + [folder / p.lstrip("./") for p in places]
        candidates += [folder / "images" / split, folder / split / "images"]
        found_here = {p.absolute() for place in candidates for p in images_at(place, root)}
        if found_here:
            found["val" if split == "valid" else split] = sorted(found_here)
    if not found and (folder / "images").is_dir():
        images = [p.absolute() for p in find_image_files(folder / "images")]
        found = {"train": images} if images else {}
    return found


def images_at(place: Path, root: Path) -> list[Path]:
    """The images of a folder, or those that a text file lists, one in a line."""
    if place.is_dir():
        return find_image_files(place)
    if place.suffix != ".txt" or not place.is_file():
        return []
    lines = [line.strip() for line in place.read_text(errors="replace").splitlines()]
    found = []
    for line in filter(None, lines):
        paths = [root / line, place.parent / line]
        found.append(next((p for p in paths if p.is_file()), paths[0]))
    return found


def to_coco(folder: Path, images: list[Path], labels: Labels) -> dict:
    """Makes COCO's content of some images; category ids are YOLO's class numbers plus one.

    Raises:
        DatasetError: an image cannot be read, or no image has a label file.
    """
    records: list[dict] = []
    annotations: list[dict] = []
    if not has_labels(images):
        raise DatasetError(
            f"none of {len(images)} images has a label file: that of {images[0]} would be "
            f"{label_file(images[0])}"
        )
    for i, path in enumerate(images, start=1):
        size, problem = read_size(path, decode=False)
        if size is None:
            raise DatasetError(f"image {path} cannot be read: {problem}")
        width, height = size
        root = folder.absolute()
        is_inside = path.is_relative_to(root)
        name = path.relative_to(root).as_posix() if is_inside else path.as_posix()
        records.append({"id": i, "file_name": name, "width": width, "height": height})
        for category, numbers in read_labels(label_file(path), labels):
            identity = (len(annotations) + 1, i, category + 1)
            annotations.append(annotation_of(identity, numbers, size))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(labels.names)]
    return {"images": records, "annotations": annotations, "categories": categories}


def annotation_of(
    identity: tuple[int, int, int], numbers: Sequence[float], size: tuple[int, int]
) -> dict:
    """Makes COCO's annotation of a box, or of a polygon, which is its mask.

    Args:
        identity: the ids of the annotation, its image and its category.
        numbers: cx, cy, w, h of a box, or x0, y0, x1, y1, ... of a polygon, as in `read_labels`.
        size: width and height of the image.
    """
    if len(numbers) > 4:
        return _polygon_annotation(identity, numbers, size)
    (cx, cy, w, h), (width, height) = numbers, size
    box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
    return box_annotation(*identity, [round(x, 3) for x in box])


def _polygon_annotation(
    identity: tuple[int, int, int], numbers: Sequence[float], size: tuple[int, int]
) -> dict:
    points = _clipped(np.array(numbers).reshape(-1, 2) * size, size).round(3)
    corners, areas = measure(points, np.array([len(points)]))
    x0, y0, x1, y1 = corners[0].tolist()
    annotation = box_annotation(*identity, [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)])
    mask = {"area": round(float(areas[0]), 3), "segmentation": [points.ravel().tolist()]}
    return {**annotation, **mask}


def _clipped(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Moves points (P, 2) that rounding has put outside their image to its border.

    A polygon that reaches farther stays as it is, as boxes do: moved points would change its shape
    inside the image, and `check-data` names it.
    """
    inside = points.clip(0, size)
    return inside if np.abs(points - inside).max() <= OUTSIDE else points


def has_labels(images: list[Path]) -> bool:
    """Whether any of the images has a label file."""
    return any(label_file(path).is_file() for path in images)


def label_file(image: Path) -> Path:
    """Returns the path of the file that labels an image; it need not exist."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def read_labels(path: Path, labels: Labels) -> list[tuple[int, tuple[float, ...]]]:
    """Reads the class and the numbers of each line; nothing if there is no file.

    Returns:
        (class, (cx, cy, w, h)) of a box or a pose, (class, (x0, y0, x1, y1, ...)) of a polygon or a
        rotated box, all relative to the image.

    Raises:
        DatasetError: naming file and line.
    """
    found = []
    text = path.read_text(errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            category, *values = (float(x) for x in words)
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}: {error}") from error
        if category not in range(len(labels.names)):
            raise DatasetError(
                f"{path}, line {number}: class {words[0]}, but there are {len(labels.names)} names"
            )
        found.append((int(category), _numbers_of(values, labels, f"{path}, line {number}")))
    return found


def _numbers_of(values: list[float], labels: Labels, place: str) -> tuple[float, ...]:
    """Returns the box of a line, its own or that of a pose, or the points of its polygon."""
    if len(values) == 4 or (labels.keypoints and len(values) == 4 + labels.keypoints):
        return tuple(values[:4])
    if labels.keypoints or len(values) < 6 or len(values) % 2:
        raise DatasetError(f"{place}: {_misfit(len(values), labels)}: mend the line, or delete it")
    if not all(map(math.isfinite, values)):
        raise DatasetError(
            f"{place}: a polygon with a number that is not finite: mend the line, or delete it"
        )
    _say_polygons()
    return tuple(values)


def _misfit(count: int, labels: Labels) -> str:
    other, wanted = "a polygon", "6, 8, 10 or more"
    if labels.keypoints:
        other, wanted = "a pose", str(4 + labels.keypoints)
    return f"neither a box nor {other}: {count} numbers, where a box has 4 and {other} {wanted}"


@functools.cache
def _say_polygons() -> None:
    logger.warning(
        "labels are polygons or rotated boxes: they are kept as masks, their boxes are the upright "
        "ones around them, and angles are lost"
    )


def _are_texts(names: dict) -> bool:
    return any(isinstance(key, str) for key in names)
