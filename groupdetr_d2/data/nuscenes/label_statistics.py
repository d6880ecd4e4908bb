"""Label statistics of keyframes: frames, objects, sizes and distances of every class."""

import numpy as np

from ..label_statistics import ALL, images_by_class, medians_of
from .index import NuScenesFrames

SIDES = ("width", "length", "height")


def frame_label_rows(frames: NuScenesFrames) -> list[dict]:
    """Lists every class with its keyframes, its objects, and their median sides and distance.

    Lengths are in metres, distances those from the lidar on the ground. The last row is of all.
    """
    index = frames.arrays
    parts = [(int(index.box_starts[key]), int(index.box_ends[key])) for key in frames.chosen]
    rows = np.concatenate([np.arange(*part) for part in parts] or [np.zeros(0, dtype=np.int64)])
    rows = rows.astype(np.int64)
    keys = np.repeat(np.arange(len(parts)), [last - first for first, last in parts])
    classes = np.asarray(index.box_class)[rows].astype(np.int64)
    boxes = np.asarray(index.boxes, dtype=np.float64).reshape(-1, 9)[rows]
    values = {side: boxes[:, 3 + i] for i, side in enumerate(SIDES)}
    values["distance"] = np.hypot(boxes[:, 0], boxes[:, 1])
    number = len(frames.class_names)
    medians = {name: medians_of(classes, own, number) for name, own in values.items()}
    seen = images_by_class(classes, keys, number).tolist()
    counts = np.bincount(classes, minlength=number).tolist()
    listed = [
        {
            "class": name,
            "keyframes": seen[i],
            "objects": counts[i],
            **{f"median {what}": round(own[i], 1) for what, own in medians.items()},
        }
        for i, name in enumerate(frames.class_names)
    ]
    whole = {
        f"median {what}": round(float(np.median(own)), 1) if len(own) else float("nan")
        for what, own in values.items()
    }
    total = {"class": ALL, "keyframes": len(np.unique(keys)), "objects": len(rows), **whole}
    return [*listed, total]
