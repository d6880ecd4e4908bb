"""Inspection of a copy of nuScenes before training: everything that is wrong with it.

Building an index stops at the first thing that is wrong; here all are listed, and links, sizes and
speeds that an index does not need are looked at, too.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..inspection import read_size
from .building import LIDAR, velocities
from .evaluation_tables import UNPACK_MAPS, problems_of_evaluation
from .inspection import READ, UNPACK, CopyInspection, FullAnnotation, LinkedFile, read_into
from .names import CAMERAS, CLASS_OF_CATEGORY, CLASSES
from .preparing import absent_files, splits_here
from .tables import (
    CalibratedSensor,
    Category,
    EgoPose,
    NuScenesError,
    Sample,
    SampleAnnotation,
    Scene,
    Sensor,
    Tables,
)

FASTEST = 100.0  # metres per second
# what the benchmark leaves out
OTHER_CATEGORIES = {
    "animal",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "static_object.bicycle_rack",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
}


# the field that names a record of another table, which need not be there if it is empty
RELATIONS = {
    "calibrated_sensor": {"sensor_token": "sensor"},
    "instance": {"category_token": "category"},
    "sample": {"scene_token": "scene"},
    "sample_data": {
        "sample_token": "sample",
        "ego_pose_token": "ego_pose",
        "calibrated_sensor_token": "calibrated_sensor",
    },
    "sample_annotation": {"sample_token": "sample", "instance_token": "instance"},
}


def check_nuscenes(
    root: str | Path, version: str, *, sampled: int = 200, progress: bool = False
) -> CopyInspection:
    """Checks the tables of a version, and its images.

    Args:
        sampled: how many images are opened, chosen at random from a fixed seed.
        progress: whether progress bars are shown.

    Raises:
        NuScenesError: the folder of the version does not exist.
    """
    found = CopyInspection(Tables(root, version, progress=progress), sampled=sampled)
    for kind in READ:
        read_into(found, kind)
    _check_relations(found)
    _check_chains(found)
    _check_keyframes(found)
    _check_poses(found)
    _check_boxes(found)
    _check_categories(found)
    _check_splits(found)
    _check_evaluation(found)
    _check_images(found)
    found.findings.sort(key=lambda finding: not finding.is_error)
    return found


def _check_relations(found: CopyInspection) -> None:
    """Looks for tokens that no record has."""
    for table, fields in RELATIONS.items():
        for field, other in fields.items():
            if other not in found.records:  # a finding of its own
                continue
            known = found.records[other]
            dangling = (
                f"{field} {getattr(x, field)!r} of {x.token}"
                for x in found.records.get(table, {}).values()
                if getattr(x, field) not in known
            )
            text = f"{found.tables.path(table)}: tokens that {other}.json lacks"
            found.add(True, text, dangling, UNPACK)
    if "attribute" in found.records:
        known = found.records["attribute"]
        dangling = (
            f"attribute {name!r} of {x.token}"
            for x in found.of(FullAnnotation).values()
            for name in x.attribute_tokens
            if name not in known
        )
        text = f"{found.tables.path('sample_annotation')}: tokens that attribute.json lacks"
        found.add(True, text, dangling, UNPACK)


def _check_chains(found: CopyInspection) -> None:
    """Looks for broken links between neighbours in time."""
    samples = found.of(Sample)
    times: dict[str, dict] = {
        "sample": {x.token: (x.timestamp, x.scene_token) for x in samples.values()},
        "sample_data": {
            x.token: (x.timestamp, (found.channel_of(x), samples[x.sample_token].scene_token))
            for x in found.of(LinkedFile).values()
            if found.channel_of(x) in CAMERAS and x.sample_token in samples
        },
        "sample_annotation": {
            x.token: (samples[x.sample_token].timestamp, x.instance_token)
            for x in found.of(FullAnnotation).values()
            if x.sample_token in samples
        },
    }
    for table, known in times.items():
        records: dict = found.records.get(table, {})
        broken = [
            text
            for x in records.values()
            if x.token in known
            for text in _breaks(x, records, known)
        ]
        text = f"{found.tables.path(table)}: broken links between neighbours in time"
        found.add(True, text, broken, UNPACK)


def _breaks(record, records: dict, known: dict) -> Iterator[str]:
    """Yields what is wrong with the links of a record."""
    time, owner = known[record.token]
    for field, back in (("prev", "next"), ("next", "prev")):
        name = getattr(record, field)
        if not name:
            continue
        other = records.get(name)
        if other is None or name not in known:
            yield f"{field} {name!r} of {record.token} is no record"
        elif getattr(other, back) != record.token:
            yield f"{field} of {record.token} is {name}, whose {back} is {getattr(other, back)!r}"
        elif known[name][1] != owner:
            yield f"{field} of {record.token} is {name}, of another scene, sensor or object"
        elif known[name][0] > time if field == "prev" else known[name][0] < time:
            yield f"{field} of {record.token} is {name}, whose time is on the other side"


def _check_keyframes(found: CopyInspection) -> None:
    """Looks for keyframes without a camera or the lidar."""
    sensors, kinds = found.of(CalibratedSensor), found.of(Sensor)
    files = found.of(LinkedFile)
    if not (sensors and kinds and files):
        return
    has: dict[str, set[str]] = defaultdict(set)
    for x in files.values():
        channel = found.channel_of(x)
        if x.is_key_frame and channel:
            has[x.sample_token].add(channel)
    for channel in (*CAMERAS, LIDAR):
        lacking = [token for token in found.of(Sample) if channel not in has[token]]
        found.add(True, f"samples without a keyframe of {channel}", lacking, UNPACK)
    bare = [
        x.token
        for x in sensors.values()
        if x.sensor_token in kinds
        and kinds[x.sensor_token].channel in CAMERAS
        and len(x.camera_intrinsic) != 3
    ]
    found.add(True, "cameras without an intrinsic matrix of 3 x 3", bare, UNPACK)


def _check_poses(found: CopyInspection) -> None:
    """Looks for places that are none."""
    for kind in (CalibratedSensor, EgoPose):
        records: list[Any] = list(found.of(kind).values())
        rotation = _numbers([x.rotation for x in records], 4)
        place = _numbers([x.translation for x in records], 3)
        bad = ~np.isfinite(place).all(1) | _is_no_rotation(rotation)
        text = f"{found.tables.path(kind.TABLE)}: a translation or rotation that is none"
        found.add(True, text, (records[i].token for i in np.flatnonzero(bad)), UNPACK)


def _check_boxes(found: CopyInspection) -> None:
    """Looks at sizes, rotations, points, attributes and speeds of boxes."""
    boxes = list(found.of(FullAnnotation).values())
    size = _numbers([x.size for x in boxes], 3)
    place = _numbers([x.translation for x in boxes], 3)
    rotation = _numbers([x.rotation for x in boxes], 4)
    points = np.array([min(x.num_lidar_pts, x.num_radar_pts) for x in boxes], dtype=np.int64)
    speed = np.linalg.norm(_velocities(found, boxes, place), axis=1)
    kinds = {
        "a centre that is not finite": ~np.isfinite(place).all(1),
        "a size that is not positive": ~(np.isfinite(size) & (size > 0)).all(1),
        "a quaternion that is none": _is_no_rotation(rotation),
        "a negative number of points": points < 0,
        "more than one attribute": np.array([len(x.attribute_tokens) > 1 for x in boxes], bool),
    }
    path = found.tables.path("sample_annotation")
    for text, bad in kinds.items():
        tokens = (boxes[i].token for i in np.flatnonzero(bad))
        found.add(True, f"{path}: boxes with {text}", tokens, UNPACK)
    fast = (f"{boxes[i].token} with {speed[i]:.0f}" for i in np.flatnonzero(speed > FASTEST))
    found.add(False, f"{path}: boxes faster than {FASTEST:g} m/s", fast)
    _count(found, boxes, size, speed)


def _velocities(
    found: CopyInspection, boxes: Sequence[SampleAnnotation], place: np.ndarray
) -> np.ndarray:
    """Computes velocities (T, 2); links and samples that are absent count as none."""
    samples, rows = found.of(Sample), {x.token: i for i, x in enumerate(boxes)}
    links = [[rows.get(x.prev, i), rows.get(x.next, i)] for i, x in enumerate(boxes)]
    times = [
        samples[x.sample_token].timestamp * 1e-6 if x.sample_token in samples else np.nan
        for x in boxes
    ]
    with np.errstate(invalid="ignore"):
        return velocities(place, np.array(times), np.array(links, dtype=np.int64).reshape(-1, 2))


def _count(
    found: CopyInspection,
    boxes: Sequence[SampleAnnotation],
    size: np.ndarray,
    speed: np.ndarray,
) -> None:
    """Puts what is in the tables among the numbers."""
    names = np.array([found.category_of(x) for x in boxes], dtype=object)
    classes = [CLASS_OF_CATEGORY.get(name, "") for name in names]
    has_points = [x.num_lidar_pts + x.num_radar_pts > 0 for x in boxes]
    number = Counter(name for name, seen in zip(classes, has_points, strict=True) if seen)
    ranges = {}
    for name in CLASSES:
        mine = np.array([x == name for x in classes], dtype=bool)
        if mine.any():
            low, high = size[mine].min(0), size[mine].max(0)
            parts = zip(("width", "length", "height"), low, high, strict=True)
            ranges[name] = ", ".join(f"{part} {a:.2f}-{b:.2f}" for part, a, b in parts)
    known = speed[np.isfinite(speed)]
    found.numbers |= {
        "scenes": len(found.of(Scene)),
        "keyframes": len(found.of(Sample)),
        "camera images": sum(found.channel_of(x) in CAMERAS for x in found.of(LinkedFile).values()),
        "boxes": len(boxes),
        "boxes of the ten classes that have a point": sum(number[x] for x in CLASSES),
        "boxes by class": {name: number[name] for name in CLASSES},
        "sizes by class, metres": ranges,
        "boxes of other categories": sum(not name for name in classes),
        "boxes of unknown velocity": int(len(speed) - len(known)),
        "highest speed, metres per second": float(known.max()) if len(known) else 0.0,
    }


def _check_categories(found: CopyInspection) -> None:
    known = {*CLASS_OF_CATEGORY, *OTHER_CATEGORIES}
    unknown = [x.name for x in found.of(Category).values() if x.name not in known]
    found.add(False, "categories that nuScenes does not have, which are passed over", unknown)


def _check_splits(found: CopyInspection) -> None:
    """Lists the splits of the version, and classes without objects."""
    try:
        splits = splits_here(found.tables)
    except NuScenesError as error:
        found.add(True, "no split can be used", [error])
        return
    found.numbers["scenes by split"] = {name: len(scenes) for name, scenes in splits.items()}
    empty = [name for name, number in found.numbers["boxes by class"].items() if not number]
    found.add(False, "classes without objects, whose AP is 0 and lowers NDS", empty)


def _check_evaluation(found: CopyInspection) -> None:
    """Looks for what the devkit reads besides: logs, visibilities, maps and their pictures."""
    problems = problems_of_evaluation(found.tables)
    found.add(True, "nuscenes-devkit would not evaluate", problems, UNPACK_MAPS)


def _check_images(found: CopyInspection) -> None:
    """Looks for images that are absent, empty, or of another size than the table says."""
    root = found.tables.root
    files = [x for x in found.of(LinkedFile).values() if found.channel_of(x) in CAMERAS]
    absent = set(absent_files(root, [x.filename for x in files]))
    names = {True: [files[i].filename for i in sorted(absent) if files[i].is_key_frame]}
    names[False] = [files[i].filename for i in sorted(absent) if not files[i].is_key_frame]
    found.add(True, f"images of keyframes missing in {root}", names[True], UNPACK)
    text = f"images between keyframes, which PETRv2 alone reads, missing in {root}"
    found.add(False, text, names[False])
    present = [x for i, x in enumerate(files) if i not in absent]
    empty = [x.filename for x in present if (root / x.filename).stat().st_size == 0]
    found.add(True, "images of zero bytes", empty, UNPACK)
    bare = set(empty)
    readable = [x for x in present if x.filename not in bare]
    chosen = random.Random(0).sample(readable, min(found.sampled, len(readable)))
    broken, other = [], []
    for x in chosen:
        size, problem = read_size(root / x.filename, decode=True)
        if size is None:
            broken.append(f"{x.filename} ({problem})")
        elif size != (x.width, x.height):
            other.append(f"{x.filename} is {size[0]} x {size[1]}, not {x.width} x {x.height}")
    found.numbers["images opened"] = len(chosen)
    found.add(True, "images that cannot be read", broken, UNPACK)
    found.add(True, "images of another size than the table says (width x height)", other, UNPACK)


def _numbers(rows: Sequence, columns: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def _is_no_rotation(rotation: np.ndarray) -> np.ndarray:
    """Whether quaternions (N, 4) are not finite, or not of length one."""
    return ~(np.abs(np.linalg.norm(rotation, axis=1) - 1) < 1e-2)
