"""YOLO-format folders as annotations in COCO's format.

A label file has a line an object, ``class cx cy w h`` relative to the image (with more numbers, the
points of a polygon), and lies beside its image with ``images`` replaced by ``labels`` in the path.
"""

import json
from pathlib import Path

import yaml

from .checks import DatasetError
from .coco_rules import box_annotation
from .image_file import find_image_files
from .inspection import read_size

SPLITS = ("train", "val", "valid", "test")


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
    names = class_names(description, folder)
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, images in find_images(folder, description).items():
        content = to_coco(folder, images, names)
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
        return yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise DatasetError(f"{file} is not valid yaml: {error}") from error


def class_names(description: dict, folder: Path) -> list[str]:
    """Finds the class names in data.yaml (a list, or a dictionary by number), or classes.txt."""
    names = description.get("names")
    if isinstance(names, dict):
        return [str(names[i]) for i in sorted(names)]
    if isinstance(names, list):
        return [str(name) for name in names]
    for file in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if file.is_file():
            return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    raise DatasetError(f"{folder} has no class names: neither `names` in data.yaml nor classes.txt")


def find_images(folder: Path, description: dict) -> dict[str, list[Path]]:
    """Finds the images of each split; all are "train" where there are no splits."""
    found = {}
    root = folder / description.get("path", "") if description.get("path") else folder
    for split in SPLITS:
        named = description.get(split)
        places = [named] if isinstance(named, str) else named or []
        candidates = [root / p for p in places] + [folder / str(p).lstrip("./") for p in places]
        candidates += [folder / "images" / split, folder / split / "images"]
        found_here = {p.resolve() for place in candidates for p in find_image_files(place)}
        if found_here:
            found["val" if split == "valid" else split] = sorted(found_here)
    if not found and (folder / "images").is_dir():
        images = find_image_files(folder / "images")
        found = {"train": images} if images else {}
    return found


def to_coco(folder: Path, images: list[Path], names: list[str]) -> dict:
    """Makes COCO's content of some images; category ids are YOLO's class numbers plus one."""
    records: list[dict] = []
    annotations: list[dict] = []
    for i, path in enumerate(images, start=1):
        size, problem = read_size(path, decode=False)
        if size is None:
            raise DatasetError(f"image {path} cannot be read: {problem}")
        width, height = size
        name = path.resolve().relative_to(folder.resolve()).as_posix()
        records.append({"id": i, "file_name": name, "width": width, "height": height})
        for category, (cx, cy, w, h) in read_labels(label_file(path), len(names)):
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            rounded = [round(x, 3) for x in box]
            annotations.append(box_annotation(len(annotations) + 1, i, category + 1, rounded))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    return {"images": records, "annotations": annotations, "categories": categories}


def label_file(image: Path) -> Path:
    """Returns the path of the file that labels an image; it need not exist."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def read_labels(path: Path, num_classes: int) -> list[tuple[int, tuple[float, ...]]]:
    """Reads (class, (cx, cy, w, h)) from each line; nothing if there is no file.

    Raises:
        DatasetError: naming file and line.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else (), 1):
        words = line.split()
        if not words:
            continue
        try:
            category, values = int(float(words[0])), [float(x) for x in words[1:]]
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}: {error}") from error
        if not 0 <= category < num_classes:
            raise DatasetError(
                f"{path}, line {number}: class {category}, but there are {num_classes} names"
            )
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise DatasetError(f"{path}, line {number}: neither a box nor a polygon: {line[:80]}")
        found.append((category, tuple(values) if len(values) == 4 else _around(values)))
    return found


def _around(polygon: list[float]) -> tuple[float, float, float, float]:
    """Computes the box around points x0 y0 x1 y1 ..., as centre and size."""
    xs, ys = polygon[0::2], polygon[1::2]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return min(xs) + width / 2, min(ys) + height / 2, width, height
