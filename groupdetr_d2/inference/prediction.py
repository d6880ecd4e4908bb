"""The work of `predict`: images, folders and videos in; pictures, JSON and CSV out."""

import argparse
import glob
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..data.coco_file import read_json
from ..data.coco_rules import read_table
from ..data.image_file import SUFFIXES, find_image_files, passed_over
from ..data.video import VIDEO_SUFFIXES, VideoWriter, read_frames
from ..errors import UserError
from ..tasks.task import Task
from .detections import Detections, write_whole
from .frame_prediction import predict_frames
from .predictor import Predictor, raised
from .work import EndOfWork, check_arguments, say, say_objects, say_summary, write_results


@dataclass(frozen=True)
class CocoIds:
    """The ids of images, by the names of their files, and of classes, by their names."""

    json_file: str
    images: dict[str, int | str]
    classes: dict[str, int | str]


def predict(args: argparse.Namespace) -> int:
    """Detects on all images or keyframes that the arguments name.

    Pictures are written as it goes, tables when it ends, however that is.

    Returns:
        1 if some files could not be read or written, 128 + the signal if one ended the work.
    """
    check_arguments(args)
    opts = [*(("MODEL.DEVICE", args.device) if args.device else ()), *args.opts]
    ids = read_coco_ids(args.coco_json) if args.coco_json else None
    predictor = Predictor(
        args.weights, threshold=args.threshold, batch_size=args.batch_size, opts=opts
    )
    if predictor.task.sees == "keyframes":
        return predict_frames(args, predictor)
    check_image_arguments(args, predictor)
    files, out = list_files(args.images), Path(args.out)
    paths = {} if args.no_pictures else output_paths(files, out)
    results: list[dict] = []
    with EndOfWork() as end:
        found = zip(files, detect_each(predictor, files), strict=True)
        for file, one in tqdm(
            found, total=len(files), unit="file", disable=not sys.stderr.isatty()
        ):
            with end.part(file):
                own = written_results(predictor, file, one, paths.get(file))
                results += own
                for result in own if args.verbose else ():
                    say_objects(place_of(result), result["objects"], predictor.task)
    written = "detections.json, detections.csv" + (", coco_results.json" if ids else "")
    with end.tables(out):
        if ids is not None:
            write_coco_results(results, ids, out / "coco_results.json", predictor.task)
        if args.polygons:
            results = with_polygons(results, predictor.task)
        write_results(results, out, predictor.threshold, predictor.task)
        say_summary(end, f"{len(files)} files", results, predictor.threshold)
        say(f"{out} holds {written}{'' if args.no_pictures else ' and the pictures'}")
    return end.exit_code


def check_image_arguments(args: argparse.Namespace, predictor: Predictor) -> None:
    """Checks that the arguments suit a model of single images.

    Raises:
        UserError: naming the argument.
    """
    if args.polygons and predictor.task.as_polygons is None:
        raise UserError(f"--polygons: the model of {args.weights} has no masks")
    for name, value in (
        ("--nuscenes", args.nuscenes),
        ("--version", args.version),
        ("--no-truth", args.no_truth),
    ):
        if value:
            raise UserError(f"{name}: the model of {args.weights} sees single images, no keyframes")


def list_files(paths: list[str]) -> list[Path]:
    """Lists files, the images and videos of folders, and the matches of patterns.

    Raises:
        UserError: something does not exist, or there is nothing in it.
    """
    found: list[Path] = []
    for path in paths:
        if Path(path).is_dir():
            videos = [p for p in Path(path).iterdir() if p.suffix.lower() in VIDEO_SUFFIXES]
            own = sorted([*find_image_files(Path(path), deep=False), *videos])
            rest = passed_over(Path(path))
            if rest:
                say(rest, sys.stderr)
        elif os.path.lexists(path):  # a link to nothing is named when it is its turn
            own = [Path(path)]
        else:
            known = SUFFIXES | VIDEO_SUFFIXES
            matches = map(Path, sorted(glob.glob(path, recursive=True)))
            own = [p for p in matches if p.suffix.lower() in known]
        if not own:
            raise UserError(f"{path} is no file, and there are no images or videos in it")
        found += own
    return found


def list_images(paths: list[str]) -> list[Path]:
    """Lists the images alone, see :func:`list_files`."""
    return [p for p in list_files(paths) if p.suffix.lower() not in VIDEO_SUFFIXES]


def detect_each(
    predictor: Predictor, files: Iterable[Path]
) -> Iterator[Detections | UserError | None]:
    """Detects on images in batches; yields what :meth:`Predictor.each` does, None for a video."""
    for is_video, part in itertools.groupby(files, lambda f: f.suffix.lower() in VIDEO_SUFFIXES):
        run = list(part)
        yield from [None] * len(run) if is_video else predictor.each(run)


def written_results(
    predictor: Predictor, file: Path, found: Detections | UserError | None, out: Path | None
) -> list[dict]:
    """Lists the results of an image, or of every frame of a video; its picture goes to `out`."""
    if found is None:
        return list(detect_on_video(predictor, file, out))
    detections = raised(found)
    if out:
        detections.save(out)
    return [{"file": str(file), "objects": detections.records()}]


def place_of(result: dict) -> str:
    """The file of a result, and of a video the number of the frame."""
    return result["file"] + (f", frame {result['frame']}" if "frame" in result else "")


def detect_on_video(predictor: Predictor, file: Path, out: Path | None) -> Iterator[dict]:
    """Detects on the frames of a video; writes an mp4 of the same length."""
    frames, count, rate = read_frames(file)
    quiet = not sys.stderr.isatty()
    with VideoWriter(out, rate) as writer:
        found = tqdm(predictor(iter(frames)), total=count, unit="frame", disable=quiet)
        for i, detections in enumerate(found):
            writer.add(detections.draw() if out else detections.image)
            yield {"file": str(file), "frame": i, "objects": detections.records()}


def picture_name(file: Path) -> str:
    """Returns the file's name, with an ending under which a picture can be written."""
    keeps = file.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp")
    return file.name if keeps else f"{file.name}.png"


def output_paths(files: list[Path], out: Path) -> dict[Path, Path]:
    """Chooses the path of each file's picture; names that repeat get their folder in front.

    Raises:
        UserError: a file would be overwritten by its own result.
    """
    paths: dict[Path, Path] = {}
    used: set[Path] = set()
    for file in files:
        is_video = file.suffix.lower() in VIDEO_SUFFIXES
        path = out / (f"{file.stem}.mp4" if is_video else picture_name(file))
        while path in used and file not in paths:
            path = path.with_name(f"{file.absolute().parent.name}_{path.name}")
        if os.path.realpath(path) == os.path.realpath(file):
            raise UserError(f"{path} would be overwritten by its own result: choose another --out")
        used.add(paths.setdefault(file, path))
    return paths


def with_polygons(results: list[dict], task: Task) -> list[dict]:
    """Returns the results with masks as polygons."""
    assert task.as_polygons is not None
    return [{**r, "objects": [task.as_polygons(x) for x in r["objects"]]} for r in results]


def read_coco_ids(json_file: str) -> CocoIds:
    """Reads the ids of images and classes from an annotation file; it needs no annotations.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    content = read_json(json_file)
    is_whole = isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "categories")
    )
    if not is_whole:
        raise UserError(f"{json_file} has no lists images and categories")
    lists = {"images": content["images"], "categories": content["categories"], "annotations": []}
    for image in lists["images"]:
        if isinstance(image, dict):  # sizes are not needed here
            image.update(width=1, height=1)
    table, findings = read_table(lists)
    for finding in findings:
        raise UserError(f"{json_file}: {finding.message()}")
    names = [Path(name).name for name in table.column("images", "file_name")]
    images = dict(zip(names, table.column("images", "id"), strict=True))
    if len(images) < len(names):
        raise UserError(f"{json_file}: images in different folders share a name, which tells no id")
    categories = table.columns["categories"]
    classes = dict(zip(categories["name"], categories["id"], strict=True))
    return CocoIds(json_file, images, classes)


def write_coco_results(results: Iterable[dict], ids: CocoIds, path: Path, task: Task) -> None:
    """Writes results in COCO's format, with the ids of an annotation file.

    Raises:
        UserError: an image or a class is not in that file.
    """
    records = []
    for result in results:
        name = Path(result["file"]).name
        if name not in ids.images:
            raise UserError(f"{name} is none of the images of {ids.json_file}")
        for x in result["objects"]:
            if x["class"] not in ids.classes:
                raise UserError(f"{ids.json_file} has no category {x['class']!r}")
            place = {"image_id": ids.images[name], "category_id": ids.classes[x["class"]]}
            records.append({**place, **task.coco_record(x), "score": x["score"]})
    write_whole(path, json.dumps(records, allow_nan=False).encode())
