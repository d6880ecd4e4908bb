"""A genuine copy of nuScenes v1.0 in small: two scenes of three keyframes, tables and images.

The vehicle turns, climbs and leans, so that no rotation is one about the vertical axis alone, and
every image has its own time and its own pose of the vehicle.
"""

import json
from hashlib import md5
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from groupdetr_d2.data.nuscenes.geometry import quaternion_of
from groupdetr_d2.data.nuscenes.names import CAMERAS, CLASS_OF_CATEGORY

SIZE = (32, 18)
SCENES = ("scene-0061", "scene-0103")  # of mini_train and mini_val
KEYFRAMES, SWEEPS = 3, 5
STEP = 500_000  # microseconds between keyframes
YAWS = dict(zip(CAMERAS, (0, -55, 55, 180, 110, -110), strict=True))
# microseconds before the lidar
OFFSETS = dict(zip(CAMERAS, (35_000, 27_000, 43_000, 10_000, 1_000, 20_000), strict=True))
CATEGORIES = [*CLASS_OF_CATEGORY, "animal", "static_object.bicycle_rack"]
ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "pedestrian.moving", "cycle.with_rider")


def token(*parts):
    return md5(" ".join(map(str, parts)).encode()).hexdigest()


def vehicle(seconds):
    """The vehicle's place and quaternion."""
    angles = [0.7 + 0.3 * seconds, 0.04 + 0.05 * seconds, -0.06 + 0.02 * seconds]
    turned = Rotation.from_euler("ZYX", angles).as_matrix()
    place = [600 + 5 * seconds, 1600 + 2 * seconds, 0.3 * seconds]
    return {"translation": place, "rotation": quaternion_of(turned).tolist()}


def calibrations(scene):
    made = []
    for camera, degrees in YAWS.items():
        angle = np.deg2rad(degrees) + 0.01
        forward = np.array([np.cos(angle), np.sin(angle), 0.02])
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(forward, right), forward], 1)
        matrix = [[25.3, 0, 16.1], [0, 25.2, 9.2], [0, 0, 1]]
        place = {"translation": (forward * 1.5 + [0, 0, 1.6]).tolist()}
        place["rotation"] = quaternion_of(axes).tolist()
        made.append({"camera_intrinsic": matrix, **place, "channel": camera})
    tilted = Rotation.from_euler("ZYX", [-np.pi / 2, 0.01, 0.02]).as_matrix()
    place = {"translation": [0.94, 0.0, 1.84], "rotation": quaternion_of(tilted).tolist()}
    made.append({"camera_intrinsic": [], **place, "channel": "LIDAR_TOP"})
    return [
        {
            **{k: v for k, v in x.items() if k != "channel"},
            "token": token("calibration", scene, x["channel"]),
            "sensor_token": token("sensor", x["channel"]),
        }
        for x in made
    ]


def chained(records):
    """Links records that follow each other."""
    for before, after in zip([None, *records], [*records, None], strict=True):
        if after is not None:
            after["prev"] = before["token"] if before else ""
        if before is not None:
            before["next"] = after["token"] if after else ""
    return records


def files_of(scene, number, channel):
    """The sample_data and ego_pose records of a sensor in a scene."""
    start = 1_532_402_900_000_000 + number * 100_000_000
    records, poses = [], []
    for i in range((KEYFRAMES - 1) * (SWEEPS + 1) + 1):
        time = start + i * STEP // (SWEEPS + 1) - OFFSETS.get(channel, 0)
        is_key = i % (SWEEPS + 1) == 0
        folder = "samples" if is_key else "sweeps"
        is_camera = channel in CAMERAS
        name = f"{scene}__{channel}__{time}" + (".jpg" if is_camera else ".pcd.bin")
        pose = {"token": token("pose", scene, channel, i), "timestamp": time}
        poses.append({**pose, **vehicle((time - start) / 1e6)})
        records.append(
            {
                "token": token("file", scene, channel, i),
                "sample_token": token("sample", scene, -(-i // (SWEEPS + 1))),
                "ego_pose_token": pose["token"],
                "calibrated_sensor_token": token("calibration", scene, channel),
                "timestamp": time,
                "fileformat": "jpg" if is_camera else "pcd",
                "is_key_frame": is_key,
                "height": SIZE[1] if is_camera else 0,
                "width": SIZE[0] if is_camera else 0,
                "filename": f"{folder}/{channel}/{name}",
            }
        )
    return chained(records), poses


def objects_of(scene):
    """The instance and sample_annotation records of a scene: an object of each category."""
    generator = np.random.default_rng(int(scene[-4:]))
    instances, annotations = [], []
    for i, category in enumerate(CATEGORIES):
        name = token("instance", scene, i)
        place = np.array([605, 1602, 1.0]) + generator.uniform(-15, 15, 3) * [1, 1, 0.05]
        velocity = generator.uniform(-6, 6, 3) * [1, 1, 0.1]
        seen = [0] if i == 1 else [0, 2] if i == 2 else range(KEYFRAMES)  # tracks with ends, gaps
        own = []
        for key in seen:
            turned = Rotation.from_euler("ZYX", [i * 0.7 + 0.1 * key, 0.02, 0.01]).as_matrix()
            own.append(
                {
                    "token": token("annotation", scene, i, key),
                    "sample_token": token("sample", scene, key),
                    "instance_token": name,
                    "visibility_token": "4",
                    "attribute_tokens": [token("attribute", ATTRIBUTES[0])] if i % 2 else [],
                    "translation": (place + velocity * 0.5 * key + 0.05 * key**2).tolist(),
                    "size": generator.uniform(0.5, 4, 3).tolist(),
                    "rotation": quaternion_of(turned).tolist(),
                    "num_lidar_pts": 0 if i in (3, 4) else 5,
                    "num_radar_pts": 2 if i == 4 else 0,
                }
            )
        annotations += chained(own)
        ends = {
            "first_annotation_token": own[0]["token"],
            "last_annotation_token": own[-1]["token"],
        }
        what = {"category_token": token("category", category), "nbr_annotations": len(own)}
        instances.append({"token": name, **what, **ends})
    return instances, annotations


def tables_of(scenes):
    """All tables by name."""
    made = {name: [] for name in ("calibrated_sensor", "ego_pose", "sample_data", "sample")}
    made |= {name: [] for name in ("scene", "instance", "sample_annotation")}
    for number, scene in enumerate(scenes):
        made["calibrated_sensor"] += calibrations(scene)
        for channel in (*CAMERAS, "LIDAR_TOP"):
            records, poses = files_of(scene, number, channel)
            made["sample_data"] += records
            made["ego_pose"] += poses
        times = [r["timestamp"] for r in records if r["is_key_frame"]]
        own = {"scene_token": token("scene", scene)}
        tokens = [token("sample", scene, i) for i in range(KEYFRAMES)]
        made["sample"] += chained(
            [{"token": t, "timestamp": time, **own} for t, time in zip(tokens, times, strict=True)]
        )
        ends = {"first_sample_token": tokens[0], "last_sample_token": tokens[-1]}
        about = {"name": scene, "description": "", "log_token": token("log"), **ends}
        made["scene"].append({"token": own["scene_token"], "nbr_samples": KEYFRAMES, **about})
        instances, annotations = objects_of(scene)
        made["instance"] += instances
        made["sample_annotation"] += annotations
    channels = [(c, "camera") for c in CAMERAS] + [("LIDAR_TOP", "lidar")]
    log = {"logfile": "n", "vehicle": "n", "date_captured": "2018-07-24", "location": "boston"}
    return {
        **made,
        "sensor": [
            {"token": token("sensor", c), "channel": c, "modality": kind} for c, kind in channels
        ],
        "category": [
            {"token": token("category", x), "name": x, "description": ""} for x in CATEGORIES
        ],
        "attribute": [
            {"token": token("attribute", x), "name": x, "description": ""} for x in ATTRIBUTES
        ],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "log": [{"token": token("log"), **log}],
        "map": [
            {
                "token": token("map"),
                "log_tokens": [token("log")],
                "category": "semantic_prior",
                "filename": "maps/map.png",
            }
        ],
    }


def write_tables(root, version, tables):
    """Writes tables; those that are None are left out, and texts are written as they are."""
    folder = Path(root, version)
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        if records is not None:
            text = records if isinstance(records, str) else json.dumps(records)
            (folder / f"{name}.json").write_text(text)


def write_copy(root, version="v1.0-mini", scenes=SCENES, edit=None):
    """Writes a copy; `edit` changes the tables, a dict of lists, before.

    Returns the tables.
    """
    tables = tables_of(scenes)
    names = [x["filename"] for x in tables["sample_data"]]
    if edit is not None:
        edit(tables)
    write_tables(root, version, tables)
    Path(root, "maps").mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(Path(root, "maps", "map.png"))
    for name in names:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            Image.new("RGB", SIZE, (90, 120, 60)).save(path)
        else:
            np.zeros((2, 5), np.float32).tofile(path)
    return tables
