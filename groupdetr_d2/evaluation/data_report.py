"""The report of check-data: findings, numbers and pictures of a data set."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..config.files import train_command
from ..data.coco_columns import CocoColumns, CocoImages, is_bad
from ..data.coco_rules import plain
from ..data.image_file import ImageReadError, read_bgr
from ..data.inspection import Inspection, inspect_coco
from ..data.segmentations import Mask, bitmap
from ..data.yolo import convert_yolo
from ..errors import UserError
from .drawing import draw_boxes, draw_masks, draw_tile, sheet

SHEET_IMAGES = 12


def check_data(args: argparse.Namespace) -> int:
    """Checks one set in COCO's format, or all of a YOLO folder; returns 1 if there are errors."""
    sets = {"data": (args.json, args.images)}
    if args.yolo:
        written = convert_yolo(args.yolo, args.out)
        sets = {split: (str(path), args.yolo) for split, path in written.items()}
    results = {name: check(name, *paths, args) for name, paths in sets.items()}
    if args.yolo:
        sys.stdout.write(command_for(sets))
    return int(any(found.has_errors for found in results.values()))


def check(name: str, json_file: str, image_root: str, args: argparse.Namespace) -> Inspection:
    """Inspects one set; prints, and writes a report and a sheet of pictures."""
    found = inspect_coco(
        json_file,
        image_root,
        num_queries=args.num_queries,
        decode=not args.fast,
        with_masks=args.masks,
    )
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror})") from error
    report = {"findings": [asdict(f) for f in found.findings], "numbers": found.numbers}
    (out / f"{name}_report.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    sys.stdout.write(f"{json_file}\n{format_numbers(found.numbers)}")
    for finding in found.findings:
        sys.stdout.write(f"{finding}\n")
    picture = out / f"{name}_sheet.jpg"
    try:
        if found.columns is not None and draw_sheet(found.columns, image_root, picture):
            sys.stdout.write(f"pictures: {picture}\n")
    except Exception as error:  # the findings are what matters
        sys.stdout.write(f"pictures cannot be drawn: {error!r}\n")
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


def draw_sheet(columns: CocoColumns, image_root: str, path: Path) -> bool:
    """Draws the first images that can be read, with their objects; False if there is none."""
    good = columns.without(is_bad(columns))
    names = [plain(name) for name in columns.class_names]
    tiles: list[np.ndarray] = []
    for d in CocoImages(good, image_root):
        if len(tiles) == SHEET_IMAGES:
            break
        try:
            picture = read_bgr(d["file_name"])
            boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in d["annotations"])]
            classes = [a["category_id"] for a in d["annotations"]]
            size = (d["height"], d["width"])
            masks = [bitmap(x, size) for x in masks_of(d)]
            draw = partial(draw_scaled, picture.shape, boxes, masks, classes, names)
            title = plain(os.path.relpath(d["file_name"], image_root))[-40:]
            tiles.append(draw_tile(title, picture, draw))
        except (ImageReadError, ValueError, OSError, cv2.error):  # the findings name it
            continue
    return bool(tiles) and cv2.imwrite(str(path), sheet(tiles, columns=4))


def masks_of(dataset_dict: dict) -> list[Mask]:
    """Lists the masks of an image's objects, where masks were read."""
    found = (a.get("segmentation") for a in dataset_dict["annotations"])
    return [mask for mask in found if mask is not None]


def draw_scaled(
    shape: tuple, boxes: list, masks: list, classes: list, names: list, image: np.ndarray
) -> np.ndarray:
    """Draws boxes and masks of an image of that shape on a scaled one."""
    if masks:
        image = draw_masks(image, np.stack(masks), classes)
    scale = [image.shape[1] / shape[1], image.shape[0] / shape[0]] * 2
    return draw_boxes(image, np.array(boxes).reshape(-1, 4) * scale, classes, names)


def command_for(sets: dict[str, tuple[str, str]]) -> str:
    """Formats the command that trains on converted data."""
    flags = []
    for split, (json_file, images) in sets.items():
        if split in ("train", "val"):
            flags += [f"--{split}-json {json_file}", f"--{split}-images {images}"]
    return f"train with: python {train_command()} --config-file ... {' '.join(flags)}\n"
