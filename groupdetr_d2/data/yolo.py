"""YOLO-format folders as annotations in COCO's format.

A label file has a line an object, ``class cx cy w h`` relative to the image (with more numbers, the
points of a polygon), and lies beside its image with ``images`` replaced by ``labels`` in the path.
"""

import functools
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

from ..config.yaml_file import YamlError, load_mapping
from .checks import DatasetError
from .coco_rules import box_annotation
from .image_file import find_image_files
from .inspection import read_size

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
        for category, (cx, cy, w, h) in read_labels(label_file(path), labels):
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            rounded = [round(x, 3) for x in box]
            annotations.append(box_annotation(len(annotations) + 1, i, category + 1, rounded))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(labels.names)]
    return {"images": records, "annotations": annotations, "categories": categories}


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
    """Reads (class, (cx, cy, w, h)) from each line; nothing if there is no file.

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
        found.append((int(category), _box_of(values, labels, f"{path}, line {number}")))
    return found


def _box_of(values: list[float], labels: Labels, place: str) -> tuple[float, ...]:
    """The box of a line: its own, that of a pose, or the one around a polygon."""
    if len(values) == 4 or (labels.keypoints and len(values) == 4 + labels.keypoints):
        return tuple(values[:4])
    if labels.keypoints or len(values) < 6 or len(values) % 2:
        raise DatasetError(f"{place}: neither a box nor a polygon: {len(values)} numbers")
    _say_polygons()
    return _around(values)


@functools.cache
def _say_polygons() -> None:
    logger.warning(
        "labels are polygons or rotated boxes: the upright boxes around them are taken, and angles "
        "are lost"
    )


def _are_texts(names: dict) -> bool:
    return any(isinstance(key, str) for key in names)


def _around(polygon: list[float]) -> tuple[float, float, float, float]:
    """Computes the box around points x0 y0 x1 y1 ..., as centre and size."""
    xs, ys = polygon[0::2], polygon[1::2]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return min(xs) + width / 2, min(ys) + height / 2, width, height
