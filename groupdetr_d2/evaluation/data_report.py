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
from tabulate import tabulate

from ..config.files import train_command
from ..data.coco_columns import CocoColumns, CocoImages, is_bad
from ..data.coco_rules import plain
from ..data.image_file import ImageReadError, read_bgr
from ..data.inspection import Inspection, compare_sets, inspect_coco
from ..data.segmentations import Mask, bitmap
from ..data.variety import Objects, others, varied_images
from ..data.yolo import convert_yolo
from ..errors import UserError
from .drawing import draw_boxes, draw_masks, draw_tile, sheet

SHEET_IMAGES, LARGEST_SHEET = 12, 24
LISTED_CLASSES = 100
IN_TABLE = ("classes", "box sizes")  # numbers that the table of labels has


def check_data(args: argparse.Namespace) -> int:
    """Checks one set in COCO's format, or two, or all of a YOLO folder.

    Returns:
        1 if there are errors.
    """
    sets = {"data": (args.json, args.images)}
    if args.val_json:
        sets["val"] = (args.val_json, args.val_images or args.images)
    if args.yolo:
        written = convert_yolo(args.yolo, args.out)
        sets = {split: (str(path), args.yolo) for split, path in written.items()}
    results = {name: inspect(*paths, args) for name, paths in sets.items()}
    first, *rest = results
    for name in rest:
        compare_sets(results[first], results[name], f"{sets[first][0]}")
    for name, found in results.items():
        report(name, *sets[name], found, Path(args.out))
    if args.fast and rest:
        sys.stdout.write("--fast reads headers alone: no images of two sets were compared\n")
    if args.yolo:
        sys.stdout.write(command_for(sets))
    return int(any(found.has_errors for found in results.values()))


def inspect(json_file: str, image_root: str, args: argparse.Namespace) -> Inspection:
    """Inspects one set as the arguments say."""
    return inspect_coco(
        json_file,
        image_root,
        num_queries=args.num_queries,
        decode=not args.fast,
        with_masks=args.masks,
    )


def report(name: str, json_file: str, image_root: str, found: Inspection, out: Path) -> None:
    """Prints what was found in a set, and writes a report and a sheet of pictures."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror})") from error
    content = {
        "findings": [asdict(f) for f in found.findings],
        "numbers": found.numbers,
        "labels": [known_values(row) for row in found.labels],
    }
    (out / f"{name}_report.json").write_text(json.dumps(content, indent=1, allow_nan=False))
    shown = {key: value for key, value in found.numbers.items() if key not in IN_TABLE}
    sys.stdout.write(f"{json_file}\n{format_labels(found)}{format_numbers(shown)}")
    for finding in found.findings:
        sys.stdout.write(f"{finding}\n")
    picture = out / f"{name}_sheet.jpg"
    try:
        drawn = None if found.columns is None else draw_sheet(found.columns, image_root, picture)
        if drawn:
            sys.stdout.write(f"pictures: {picture} ({drawn})\n")
    except Exception as error:  # the findings are what matters
        sys.stdout.write(f"pictures cannot be drawn: {error!r}\n")
    verdict = "errors: mend them before training" if found.has_errors else "no errors"
    sys.stdout.write(f"{verdict} (everything in {out}/{name}_report.json)\n")


def format_labels(found: Inspection) -> str:
    """Formats the label statistics as a table; of many classes the first ones and all together."""
    if not found.labels:
        return ""
    *classes, together = found.labels
    more = len(classes) - LISTED_CLASSES
    lines = [format_rows([*classes[:LISTED_CLASSES], together])]
    if more > 0:
        lines.append(f"  {more} more classes are in the report\n")
    crowds = 0 if found.columns is None else int(found.columns.crowd.sum())
    if crowds:
        lines.append(f"  {crowds} regions of crowds are not counted here\n")
    return "".join(lines)


def format_rows(rows: list[dict], title: str = "") -> str:
    """Formats rows as a table, indented."""
    known = [known_values(row) for row in rows]
    table = tabulate(known, headers="keys", tablefmt="simple", missingval="-", floatfmt=".1f")
    lines = [f"  {line.rstrip()}\n" for line in table.splitlines()]
    return "".join([f"{title}:\n" if title else "", *lines])


def known_values(row: dict) -> dict:
    """Puts None in the place of numbers that are not known."""
    return {key: None if value != value else value for key, value in row.items()}


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


def draw_sheet(columns: CocoColumns, image_root: str, path: Path) -> str:
    """Draws images that together show what there is, with their objects.

    Returns:
        how many images and classes are on the sheet; nothing if no image can be read.
    """
    good = columns.without(is_bad(columns))
    images, objects = CocoImages(good, image_root), objects_of(good)
    chosen = varied_images(objects, LARGEST_SHEET)
    number = max(len(chosen), min(SHEET_IMAGES, objects.num_images))
    tiles: dict[int, np.ndarray] = {}
    for place, reason in [*chosen, *others(objects, [place for place, _ in chosen])]:
        if len(tiles) == number:
            break
        try:
            tiles[place] = _tile(images[place], reason, image_root, list(objects.class_names))
        except (ImageReadError, ValueError, OSError, cv2.error):  # the findings name it
            continue
    if not tiles or not cv2.imwrite(str(path), sheet(list(tiles.values()), columns=4)):
        return ""
    seen, there = objects.classes_on(list(tiles)), len(np.unique(objects.class_of))
    return f"{len(tiles)} images with {seen} of {there} classes that have objects"


def objects_of(columns: CocoColumns) -> Objects:
    """Lists the objects of a set without crowds; sides are relative to their image."""
    own = ~columns.crowd
    images = columns.image_of[own]
    sides = np.sqrt(columns.boxes[own, 2] * columns.boxes[own, 3])
    relative = sides / columns.sizes.max(1, initial=1)[images]
    names = [plain(name) for name in columns.class_names]
    return Objects(images, columns.class_of[own], relative, len(columns.image_ids), names)


def _tile(d: dict, reason: str, image_root: str, names: list[str]) -> np.ndarray:
    picture, annotations = read_bgr(d["file_name"]), d["annotations"]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
    classes = [a["category_id"] for a in annotations]
    masks = [bitmap(x, (d["height"], d["width"])) for x in masks_of(d)]
    draw = partial(draw_scaled, picture.shape, boxes, masks, classes, names)
    title = plain(os.path.relpath(d["file_name"], image_root))[-24:]
    return draw_tile(f"{title}: {reason}", picture, draw)


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
