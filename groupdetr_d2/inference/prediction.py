"""The work of `predict`: images, folders and videos in; pictures, JSON and CSV out."""

import argparse
import csv
import glob
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from ..data.coco_file import read_json
from ..data.image_file import SUFFIXES, ImageReadError, find_image_files
from ..data.video import VIDEO_SUFFIXES, VideoWriter, read_frames
from ..errors import UserError
from ..tasks.task import Task
from .predictor import Predictor


def predict(args: argparse.Namespace) -> int:
    """Detects on all files that the arguments name; returns 1 if some cannot be read."""
    files = list_files(args.images)
    opts = [*(("MODEL.DEVICE", args.device) if args.device else ()), *args.opts]
    predictor = Predictor(args.weights, threshold=args.threshold, opts=opts)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    paths = {} if args.no_pictures else output_paths(files, out)
    results, failed = [], 0
    for file in tqdm(files, unit="file", disable=not sys.stderr.isatty()):
        try:
            results += detect(predictor, file, None if args.no_pictures else paths[file])
        except ImageReadError as error:
            failed += 1
            sys.stderr.write(f"error: {error}\n")
    write_results(results, out, predictor.threshold, predictor.task)
    if args.coco_json:
        write_coco_results(results, args.coco_json, out / "coco_results.json", predictor.task)
    written = "detections.json, detections.csv" + (", coco_results.json" if args.coco_json else "")
    sys.stdout.write(
        f"{len(files) - failed} of {len(files)} files, {sum(len(r['objects']) for r in results)} "
        f"objects with a score of at least {predictor.threshold:.2f}: {out} holds {written}"
        f"{'' if args.no_pictures else ' and the pictures'}\n"
    )
    return int(failed > 0)


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
        elif Path(path).exists():
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


def detect(predictor: Predictor, file: Path, out: Path | None) -> list[dict]:
    """Detects on an image or every frame of a video; the picture or video goes to `out`."""
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return list(detect_on_video(predictor, file, out))
    detections = predictor(file)
    if out:
        detections.save(out)
    objects = detections.records()
    sys.stdout.write(f"{file}: {len(objects)} objects\n")
    for x in objects:
        flat = predictor.task.flat_record(x)
        place = " ".join(f"{flat[name]:.1f}" for name in predictor.task.columns[2:])
        sys.stdout.write(f"  {x['class']} {x['score']:.3f} [{place}]\n")
    return [{"file": str(file), "objects": objects}]


def detect_on_video(predictor: Predictor, file: Path, out: Path | None) -> Iterator[dict]:
    """Detects frame by frame; writes an mp4 of the same length."""
    frames, count, rate = read_frames(file)
    quiet = not sys.stderr.isatty()
    with VideoWriter(out, rate) as writer:
        for i, frame in enumerate(tqdm(frames, total=count, unit="frame", disable=quiet)):
            detections = predictor(frame)
            writer.add(detections.draw() if out else frame)
            yield {"file": str(file), "frame": i, "objects": detections.records()}
    sys.stdout.write(f"{file}: {i + 1} frames\n")


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
    for file in files:
        is_video = file.suffix.lower() in VIDEO_SUFFIXES
        path = out / (f"{file.stem}.mp4" if is_video else picture_name(file))
        while path in paths.values() and file not in paths:
            path = path.with_name(f"{file.resolve().parent.name}_{path.name}")
        if path.resolve() == file.resolve():
            raise UserError(f"{path} would be overwritten by its own result: choose another --out")
        paths.setdefault(file, path)
    return paths


def write_results(results: list[dict], out: Path, threshold: float, task: Task) -> None:
    """Writes `detections.json`, and `detections.csv` with one line per object."""
    content = {"threshold": threshold, "results": results}
    (out / "detections.json").write_text(json.dumps(content, indent=1))
    with (out / "detections.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "frame", *task.columns])
        for result in results:
            for x in result["objects"]:
                row = {**task.flat_record(x), "score": f"{x['score']:.4f}"}
                writer.writerow([result["file"], result.get("frame", ""), *row.values()])


def write_coco_results(results: Iterable[dict], json_file: str, path: Path, task: Task) -> None:
    """Writes results in COCO's format, with the ids of an annotation file.

    Raises:
        UserError: an image or a class is not in that file.
    """
    content = read_json(json_file)
    images = {Path(image["file_name"]).name: image["id"] for image in content["images"]}
    if len(images) < len(content["images"]):
        raise UserError(f"{json_file}: images in different folders share a name, which tells no id")
    categories = {c["name"]: c["id"] for c in content["categories"]}
    records = []
    for result in results:
        name = Path(result["file"]).name
        if name not in images:
            raise UserError(f"{name} is none of the images of {json_file}")
        for x in result["objects"]:
            if x["class"] not in categories:
                raise UserError(f"{json_file} has no category {x['class']!r}")
            place = {"image_id": images[name], "category_id": categories[x["class"]]}
            records.append({**place, **task.coco_record(x), "score": x["score"]})
    path.write_text(json.dumps(records))
