"""Detects objects on images with a trained checkpoint, and draws them."""

import argparse
import sys
from pathlib import Path

from ..data.image_file import find_image_files
from ..engine.launch import report_errors
from ..predictor import Predictor


def main(argv: list[str]) -> int:
    """Writes one picture an image into --out and prints what was found."""
    parser = argparse.ArgumentParser(prog="groupdetr_d2 predict", description=__doc__)
    parser.add_argument("images", nargs="+", help="image files or folders of images")
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument("--out", default="predictions", help="folder for the pictures")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score shown")
    args = parser.parse_args(argv)
    with report_errors():
        predictor = Predictor(args.weights, threshold=args.threshold)
        for image in list_images(args.images):
            detections = predictor(image)
            detections.save(Path(args.out) / image.name)
            found = detections.instances
            sys.stdout.write(f"{image}: {len(found)} objects\n")
            for box, score, category in zip(
                found.pred_boxes.tensor.tolist(), found.scores, found.pred_classes, strict=True
            ):
                corners = " ".join(f"{x:.1f}" for x in box)
                sys.stdout.write(f"  {detections.names[category]} {score:.3f} [{corners}]\n")
    return 0


def list_images(paths: list[str]) -> list[Path]:
    """The files themselves, and the images of folders in the order of their names."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += find_image_files(path, deep=False)
        else:
            found.append(path)
    return found
