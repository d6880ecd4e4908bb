"""The work of `predict` with a model of several cameras: keyframes in, pictures and tables out."""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.video import VideoWriter
from ..errors import UserError
from ..evaluation.frame_sheet import true_instances
from ..evaluation.nuscenes_evaluator import RESULTS
from ..evaluation.nuscenes_evaluator import write_results as write_nuscenes_results
from ..evaluation.nuscenes_results import FrameBoxes, accepted
from .detections import Detections, write_picture
from .frame_selection import FrameFinder, SceneFrames
from .predictor import Predictor
from .work import EndOfWork, say, say_objects, say_summary, write_results

RATE = 2.0  # keyframes a second
PLACES = ("scene", "sample_token")  # first columns of the table


@dataclass
class Found:
    """The detections so far: records by keyframe for the tables, boxes by sample token."""

    results: list[dict] = field(default_factory=list)
    boxes: dict[str, FrameBoxes] = field(default_factory=dict)

    def add(self, record: dict, detections: Detections) -> None:
        """Adds the detections in one keyframe."""
        objects = detections.records()
        places = {key: record[key] for key in (*PLACES, "timestamp")}
        self.results.append({"file": record["file_name"], **places, "objects": objects})
        self.boxes[record["sample_token"]] = accepted(frame_boxes(detections))


def predict_frames(args: argparse.Namespace, predictor: Predictor) -> int:
    """Detects in all keyframes that the arguments name; see :func:`prediction.predict`."""
    check_frame_arguments(args)
    out, found = Path(args.out), Found()
    scenes = FrameFinder(predictor.cfg, args.nuscenes, args.version).find(args.images)
    number = sum(len(scene.frames) for scene in scenes)
    folder = None if args.no_pictures else out
    videos = video_paths(scenes, out) if folder else [None] * len(scenes)
    bar = tqdm(total=number, unit="keyframe", disable=not sys.stderr.isatty())
    with EndOfWork() as end, bar:
        for scene, video in zip(scenes, videos, strict=True):
            with VideoWriter(video, RATE) as writer:
                for i, record in enumerate(scene.frames):
                    name = f"{scene.name}_{scene.numbers[i]:02d}_{record['sample_token']}"
                    with end.part(name):
                        detections = predictor(record)
                        if folder:
                            truth = scene.has_truth and not args.no_truth
                            picture = draw_frame(detections, record if truth else None)
                            write_picture(folder / f"{name}.jpg", picture)
                            writer.add(picture)
                        found.add(record, detections)
                        if args.verbose:
                            say_objects(name, found.results[-1]["objects"], predictor.task)
                    bar.update()
    with end.tables(out):
        write_results(found.results, out, predictor.threshold, predictor.task, PLACES)
        write_nuscenes_results(out / RESULTS, list(found.boxes), found.boxes)
        more = [RESULTS, *(["pictures"] if folder else []), *(["videos"] if any(videos) else [])]
        say_summary(end, f"{number} keyframes", found.results, predictor.threshold)
        say(f"{out} holds detections.json, detections.csv, {', '.join(more)}")
    return end.exit_code


def check_frame_arguments(args: argparse.Namespace) -> None:
    """Checks that the arguments suit a model of several cameras.

    Raises:
        UserError: naming the argument, and what there is instead.
    """
    why = f"the model of {args.weights} finds boxes in space"
    if args.polygons:
        raise UserError(f"--polygons: {why}, and has no masks")
    if args.coco_json:
        raise UserError(
            f"--coco-json: {why}, which COCO's format has no place for; {RESULTS} is written"
        )


def video_paths(scenes: list[SceneFrames], out: Path) -> list[Path | None]:
    """Chooses the path of each scene's video; a single keyframe has none."""
    paths: list[Path | None] = []
    for scene in scenes:
        path = out / f"{scene.name}.mp4"
        while path in paths:  # a scene of another copy
            path = path.with_name(f"{Path(scene.frames.root).absolute().name}_{path.name}")
        paths.append(path if len(scene.frames) > 1 else None)
    return paths


def draw_frame(detections: Detections, record: dict | None) -> np.ndarray:
    """Draws detections over the true boxes of a keyframe's record, if that is given."""
    truth = None if record is None else true_instances(record)
    return detections.image.draw(detections.names, truth=truth, found=detections.instances)


def frame_boxes(detections: Detections) -> FrameBoxes:
    """Takes what a result file of nuScenes says of the detections in a keyframe."""
    instances, about = detections.instances, detections.about
    return FrameBoxes(
        token=about["sample_token"],
        boxes=detections.boxes_in("lidar"),
        scores=instances.scores.double().numpy(),
        classes=instances.pred_classes.numpy(),
        lidar2ego=np.asarray(about["lidar2ego"]),
        ego2global=np.asarray(about["ego2global"]),
    )
