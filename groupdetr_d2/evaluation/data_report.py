"""The report of check-data: findings, numbers and pictures of a data set."""

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..data.coco_rules import read_json, xyxy_of
from ..data.image_file import ImageReadError, read_bgr
from ..data.inspection import Inspection, inspect_coco
from ..data.yolo import convert_yolo
from .drawing import draw_boxes, draw_tile, sheet

SHEET_IMAGES = 12


def check_data(args: argparse.Namespace) -> int:
    """Checks one set in COCO's format, or all of a YOLO folder; returns 1 if there are errors."""
    sets = {"data": (args.json, args.images)}
    if args.yolo:
        written = convert_yolo(args.yolo, args.out)
        sets = {split: (str(path), args.yolo) for split, path in written.items()}
    results = {name: check(name, *paths, args) for name, paths in sets.items()}
    if args.yolo:
        sys.stdout.write(train_command(sets))
    return int(any(found.has_errors for found in results.values()))


def check(name: str, json_file: str, image_root: str, args: argparse.Namespace) -> Inspection:
    """Inspects one set; prints, and writes a report and a sheet of pictures."""
    found = inspect_coco(json_file, image_root, num_queries=args.num_queries, decode=not args.fast)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    report = {"findings": [asdict(f) for f in found.findings], "numbers": found.numbers}
    (out / f"{name}_report.json").write_text(json.dumps(report, indent=1))
    sys.stdout.write(f"{json_file}\n{format_numbers(found.numbers)}")
    for finding in found.findings:
        sys.stdout.write(f"{finding}\n")
    if found.numbers and draw_sheet(json_file, image_root, out / f"{name}_sheet.jpg"):
        sys.stdout.write(f"pictures: {out}/{name}_sheet.jpg\n")
    verdict = "errors: mend them before training" if found.has_errors else "no errors"
    sys.stdout.write(f"{verdict} (everything in {out}/{name}_report.json)\n")
    return found


def format_numbers(numbers: dict, indent: str = "  ") -> str:
    """Formats one number per line, nested ones indented."""
    lines = []
    for key, value in numbers.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:\n", format_numbers(value, indent + "  ")]
        else:
            text = f"{value:.2f}" if isinstance(value, float) else value
            lines.append(f"{indent}{key}: {text}\n")
    return "".join(lines)


def draw_sheet(json_file: str, image_root: str, path: Path) -> bool:
    """Draws the first images that can be read, with their boxes; False if there is none."""
    content = read_json(json_file)
    tiles: list[np.ndarray] = []
    places = {c["id"]: i for i, c in enumerate(content["categories"])}
    names = [c["name"] for c in content["categories"]]
    for image in content["images"]:
        if len(tiles) == SHEET_IMAGES:
            break
        own = [
            a
            for a in content["annotations"]
            if a["image_id"] == image["id"] and a["category_id"] in places and xyxy_of([a])
        ]
        boxes = xyxy_of(own)
        classes = [places[a["category_id"]] for a in own]
        try:
            picture = read_bgr(Path(image_root) / image["file_name"])
            draw = partial(draw_scaled, picture.shape, boxes, classes, names)
            tiles.append(draw_tile(image["file_name"][-40:], picture, draw))
        except (ImageReadError, ValueError):  # unreadable, or a box that is not finite
            continue
    return bool(tiles) and cv2.imwrite(str(path), sheet(tiles, columns=4))


def draw_scaled(shape: tuple, boxes: list, classes: list, names: list, image: np.ndarray):
    """Draws boxes of an image of that shape on a scaled one."""
    scale = [image.shape[1] / shape[1], image.shape[0] / shape[0]] * 2
    return draw_boxes(image, np.array(boxes).reshape(-1, 4) * scale, classes, names)


def train_command(sets: dict[str, tuple[str, str]]) -> str:
    """Formats the command that trains on converted data."""
    flags = []
    for split, (json_file, images) in sets.items():
        if split in ("train", "val"):
            flags += [f"--{split}-json {json_file}", f"--{split}-images {images}"]
    return f"train with: python train_net.py --config-file ... {' '.join(flags)}\n"
