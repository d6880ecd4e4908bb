"""Measures data handling at COCO's size: reading of annotations, evaluation, the report.

    python benchmarks/data_scale.py [--folder output/data_scale]

It makes a set of the size of COCO (118,287 images that are links to one, 869,218 objects with
polygons) and a validation set with 300 detections on each of 5,000 images, and prints a table for
docs/performance.md. Every line is measured in a process of its own: seconds, and the memory that is
needed beyond that of the imported packages.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

IMAGES, OBJECTS, CLASSES = 118_287, 869_218, 80
EVALUATED, DETECTIONS = 5_000, 300


def main() -> None:
    """Makes what is missing, and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="output/data_scale")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = Path(args.folder).resolve()
    if args.step:
        STEPS[args.step](folder)
        return
    make_set(folder, "train", IMAGES, OBJECTS)
    make_set(folder, "val", EVALUATED, EVALUATED * 7)
    os.environ["GROUPDETR_CACHE"] = str(folder / "cache")
    for old in (folder / "cache").glob("*/*"):
        old.unlink()
    print("| what | seconds | MB |\n|---|---|---|")
    for title, step in TITLES.items():
        command = [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "--folder",
            str(folder),
            "--step",
            step,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = done.stdout.splitlines()[-1:] or [f"failed: {done.stderr[-200:]}"]
        print(f"| {title} | {last[0]} |", flush=True)


def make_set(folder: Path, name: str, images: int, objects: int) -> None:
    """Writes a json in COCO's format, and links to one image."""
    path = folder / f"{name}.json"
    if path.is_file():
        return
    rng = np.random.default_rng(0)
    (folder / name).mkdir(parents=True, exist_ok=True)
    picture = folder / "picture.jpg"
    cv2.imwrite(str(picture), rng.integers(0, 256, (480, 640, 3), np.uint8))
    records = []
    for i in range(images):
        file_name = f"{i:012d}.jpg"
        link = folder / name / file_name
        if not link.is_symlink():
            link.symlink_to(picture)
        address = f"http://images.example.org/{name}/{file_name}"
        size = {"height": 480, "width": 640, "coco_url": address, "date_captured": "2013-11-14"}
        records.append({"license": 3, "file_name": file_name, **size, "id": 7 * i + 9})
    annotations = []
    owners = np.sort(rng.integers(0, images, objects)).tolist()
    boxes = np.concatenate(
        [rng.uniform(0, 300, (objects, 2)), rng.uniform(4, 170, (objects, 2))], 1
    )
    for i, (owner, box) in enumerate(zip(owners, boxes.round(2).tolist(), strict=True)):
        points = rng.uniform(0, 450, 38).round(2).tolist()
        own = {"segmentation": [points], "area": round(box[2] * box[3] / 2, 4), "iscrowd": 0}
        ids = {"image_id": 7 * owner + 9, "category_id": int(rng.integers(1, CLASSES + 1))}
        annotations.append({**own, **ids, "bbox": box, "id": i + 1})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(CLASSES)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def measured(work) -> None:
    """Prints the seconds of a function and the memory that it added to the peak."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = peak_kilobytes()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} | {(peak_kilobytes() - before) / 1024:.0f}")


def peak_kilobytes() -> int:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def register(folder: Path, name: str) -> str:
    """Registers a set as users do."""
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances(name, {}, str(folder / f"{name}.json"), str(folder / name))
    return name


def read_ours(folder: Path) -> None:
    """Reads the training set as a training does, files included."""
    from groupdetr_d2.data.catalog import images_of
    from groupdetr_d2.data.coco_columns import JoinedImages
    from groupdetr_d2.data.loader import TrainingSet

    name = register(folder, "train")
    measured(lambda: TrainingSet(JoinedImages([images_of(name)]))[5])


def read_detectron2(folder: Path) -> None:
    """Reads the training set as Detectron2 does."""
    from detectron2.data import DatasetCatalog
    from detectron2.data.common import DatasetFromList

    name = register(folder, "train")
    measured(lambda: DatasetFromList(DatasetCatalog.get(name), copy=False))


def detections(folder: Path):
    """Makes detections around the objects of the validation set, and others."""
    from groupdetr_d2.data.catalog import images_of
    from groupdetr_d2.evaluation.coco_metrics import DetectionColumns

    truth = images_of(register(folder, "val")).columns
    rng = np.random.default_rng(1)
    number = EVALUATED * DETECTIONS
    source = rng.integers(0, len(truth.boxes), number)
    image_of = np.repeat(np.arange(EVALUATED), DETECTIONS)
    image_of[: len(truth.boxes)] = truth.image_of
    source[: len(truth.boxes)] = np.arange(len(truth.boxes))
    boxes = truth.boxes[source] + rng.normal(0, 2, (number, 4))
    boxes[:, 2:] = boxes[:, 2:].clip(min=1)
    scores = rng.uniform(0, 1, number)
    return truth, DetectionColumns(image_of, truth.class_of[source], boxes, scores)


def evaluate(folder: Path, module: str, evaluation: str) -> None:
    """Evaluates with one of the packages."""
    import importlib

    from groupdetr_d2.evaluation.coco_metrics import coco_metrics

    truth, found = detections(folder)
    package = importlib.import_module(module)
    home = (
        importlib.import_module("pycocotools.cocoeval") if module == "pycocotools.coco" else package
    )
    chosen = (module, package, getattr(home, evaluation))
    measured(lambda: coco_metrics(truth, found, truth.class_names, package=chosen))


def report(folder: Path) -> None:
    """Computes curves, the threshold and the worst images, as the report of a training does."""
    from groupdetr_d2.evaluation.coco_evaluator import RESULTS, CocoEvaluator
    from groupdetr_d2.evaluation.detection_curves import confusion_matrix, mistakes_of
    from groupdetr_d2.evaluation.evaluation_report import Evaluation
    from groupdetr_d2.tasks.boxes import BOXES

    truth, found = detections(folder)
    evaluator = CocoEvaluator("val", str(folder))
    evaluator.write(found)

    def work() -> None:
        results = BOXES.read_results("val", folder / RESULTS)
        evaluation = Evaluation.of(results, truth.class_names)
        confusion_matrix(evaluation.pairs, CLASSES)
        [mistakes_of(pairs) for pairs in evaluation.pairs]

    measured(work)


STEPS = {
    "ours": read_ours,
    "detectron2": read_detectron2,
    "faster": lambda folder: evaluate(folder, "faster_coco_eval", "COCOeval_faster"),
    "pycocotools": lambda folder: evaluate(folder, "pycocotools.coco", "COCOeval"),
    "report": report,
}
TITLES = {
    "annotations, the first time": "ours",
    "annotations, later runs and further processes": "ours",
    "annotations, Detectron2's loader": "detectron2",
    "evaluation, faster-coco-eval": "faster",
    "evaluation, pycocotools": "pycocotools",
    "report": "report",
}

if __name__ == "__main__":
    main()
