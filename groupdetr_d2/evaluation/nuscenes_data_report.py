"""The report of check-data on a copy of nuScenes: findings, numbers and pictures."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..data.nuscenes.building import build_index, read_content
from ..data.nuscenes.checking import check_nuscenes
from ..data.nuscenes.index import NuScenesFrames
from ..data.nuscenes.inspection import CopyInspection
from ..data.nuscenes.label_statistics import frame_label_rows
from ..data.nuscenes.splits import OFFICIAL
from ..data.nuscenes.tables import Tables
from ..errors import UserError
from .data_report import format_numbers, format_rows

SHEET_SCENES = 10  # of a sheet of pictures
SAMPLED = 200  # images that are opened without --fast, chosen from a fixed seed
# writes a picture of some frames; returns whether there is one
Draw = Callable[[NuScenesFrames, Path], bool]


def check_nuscenes_data(args: argparse.Namespace, draw: Draw | None = None) -> int:
    """Checks a copy of nuScenes; prints, and writes a report. Returns 1 if there are errors.

    Args:
        draw: draws frames of some scenes into a file, if the tables allow it. Label statistics of
            those scenes are printed, too.
    """
    version = args.version or find_version(args.nuscenes)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror})") from error
    sampled = 0 if args.fast else SAMPLED
    found = check_nuscenes(args.nuscenes, version, sampled=sampled, progress=sys.stderr.isatty())
    report = {"findings": [asdict(f) for f in found.findings], "numbers": found.numbers}
    path = out / f"{version}_report.json"
    path.write_text(json.dumps(report, indent=1, allow_nan=False))
    sys.stdout.write(f"{found.tables.folder}\n{format_numbers(found.numbers)}")
    for finding in found.findings:
        sys.stdout.write(f"{finding}\n")
    if draw is not None:
        picture = out / f"{version}_sheet.jpg"
        try:
            frames = some_frames(found)
            labels = frame_label_rows(frames)
            sys.stdout.write(format_rows(labels, f"labels of {len(frames)} keyframes"))
            if draw(frames, picture):
                sys.stdout.write(f"pictures: {picture}\n")
        except Exception as error:  # the findings are what matters
            why = " before the errors are mended" if found.has_errors else f": {error!r}"
            sys.stdout.write(f"pictures cannot be drawn{why}\n")
    verdict = "errors: mend them before training" if found.has_errors else "no errors"
    sys.stdout.write(f"{verdict} (everything in {path})\n")
    return int(found.has_errors)


def find_version(root: str) -> str:
    """Finds the version of a copy that has one alone.

    Raises:
        UserError: there is none, or there are several.
    """
    names = sorted(path.parent.name for path in Path(root).glob("*/sample_data.json"))
    if len(names) == 1:
        return names[0]
    known = ", ".join(f"v1.0-{end}" for end in OFFICIAL)
    raise UserError(
        f"{root} has the tables of {', '.join(names) or 'no version'}: name one with --version "
        f"({known} are official)"
    )


def some_frames(found: CopyInspection) -> NuScenesFrames:
    """Builds the frames of scenes from all over an inspected copy, in memory."""
    tables = Tables(found.tables.root, found.tables.version)
    content = read_content(tables)
    number = min(SHEET_SCENES, len(content.scenes))
    places = np.linspace(0, len(content.scenes) - 1, number).round().astype(int)
    names = [content.scenes[place].name for place in places]
    return NuScenesFrames(build_index(content, names), str(tables.root))
