"""A tiny genuine copy of nuScenes, tables alone: two scenes of three keyframes, all ten classes."""

import json

import cv2
import numpy as np
from pyquaternion import Quaternion

from groupdetr_d2.data.nuscenes.names import CAMERAS, CLASS_OF_CATEGORY, CLASSES
from groupdetr_d2.evaluation.nuscenes_results import attribute_of

SCENES = ("scene-0061", "scene-0103")  # of the official mini_train and mini_val
NUM_KEYFRAMES = 3
# width, length, height, speed
KINDS = {
    "car": (1.9, 4.6, 1.7, 6.0),
    "truck": (2.5, 7.0, 3.0, 0.0),
    "construction_vehicle": (2.8, 6.0, 3.2, 0.0),
    "bus": (2.9, 11.0, 3.5, 4.0),
    "trailer": (2.9, 12.0, 3.8, 0.0),
    "barrier": (2.5, 0.5, 1.0, 0.0),
    "motorcycle": (0.8, 2.1, 1.4, 5.0),
    "bicycle": (0.6, 1.7, 1.3, 0.0),
    "pedestrian": (0.7, 0.7, 1.8, 1.2),
    "traffic_cone": (0.4, 0.4, 1.1, 0.0),
}
LIDAR = Quaternion(axis=[0, 0, 1], angle=-np.pi / 2)  # x right, y forward


def write_copy(root, version="v1.0-mini", splits=None, classes=CLASSES, tilt=0.0):
    """Writes the 13 tables below root/version.

    Args:
        splits: contents of splits.json, scene names by split; none if not given.
        classes: those that have objects.
        tilt: radians by which the vehicle pitches and rolls.
    """
    tables = {name: [] for name in ("sample", "sample_data", "ego_pose", "sample_annotation")}
    tables |= {"instance": [], "scene": []}
    for number, scene in enumerate(SCENES):
        write_scene(tables, scene, number, classes, tilt)
    names = [*CAMERAS, "LIDAR_TOP"]
    categories = [*CLASS_OF_CATEGORY, "animal"]
    attributes = {attribute_of(name, speed) for name in CLASSES for speed in (0, 1)} - {""}
    tables |= {
        "category": [{"token": f"c-{c}", "name": c, "description": ""} for c in categories],
        "attribute": [{"token": f"a-{a}", "name": a, "description": ""} for a in attributes],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "sensor": [
            {"token": f"s-{n}", "channel": n, "modality": "lidar" if "LIDAR" in n else "camera"}
            for n in names
        ],
        "calibrated_sensor": [calibration(name) for name in names],
        "log": [
            {"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": ""}
        ],
        "map": [
            {"token": "map", "log_tokens": ["log"], "filename": "maps/map.png", "category": ""}
        ],
    }
    (root / version).mkdir(parents=True)
    (root / "maps").mkdir(exist_ok=True)
    cv2.imwrite(str(root / "maps" / "map.png"), np.zeros((8, 8), dtype=np.uint8))
    if splits is not None:
        tables["splits"] = splits
    for name, records in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(records))


def calibration(name):
    is_lidar = name == "LIDAR_TOP"
    return {
        "token": f"cs-{name}",
        "sensor_token": f"s-{name}",
        "translation": [0.9, 0.1, 1.8],
        "rotation": list(LIDAR.elements) if is_lidar else [0.5, -0.5, 0.5, -0.5],
        "camera_intrinsic": [] if is_lidar else [[25.0, 0, 16], [0, 25.0, 9], [0, 0, 1]],
    }


def write_scene(tables, scene, number, classes, tilt):
    heading = Quaternion(axis=[0, 0, 1], angle=0.5 + number)
    turn = Quaternion(axis=[0, 1, 0], angle=tilt) * Quaternion(axis=[1, 0, 0], angle=-tilt)
    samples = [f"{scene}-{k}" for k in range(NUM_KEYFRAMES)]
    tables["scene"].append(
        {
            "token": scene,
            "name": scene,
            "log_token": "log",
            "nbr_samples": NUM_KEYFRAMES,
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "description": "",
        }
    )
    for k, sample in enumerate(samples):
        time, links = 10**15 + number * 10**9 + k * 500_000, neighbours(samples, k)
        tables["sample"].append({"token": sample, "timestamp": time, "scene_token": scene, **links})
        tables["ego_pose"].append(
            {
                "token": f"p-{sample}",
                "timestamp": time,
                "translation": list(ego_place(number, k, heading)),
                "rotation": list((heading * turn).elements),
            }
        )
        for name in (*CAMERAS, "LIDAR_TOP"):
            ends = {end: link and f"{link}-{name}" for end, link in links.items()}
            tables["sample_data"].append(sensor_data(name, sample, time, ends))
    for name in classes:
        write_track(tables, name, number, samples, heading)


def ego_place(number, k, heading):
    return np.array([400.0, 900.0 + 100 * number, 0.0]) + heading.rotate([2.5 * k, 0, 0])


def sensor_data(name, sample, time, ends):
    is_lidar = name == "LIDAR_TOP"
    return {
        "token": f"{sample}-{name}",
        "sample_token": sample,
        "ego_pose_token": f"p-{sample}",
        "calibrated_sensor_token": f"cs-{name}",
        "timestamp": time,
        "fileformat": "pcd" if is_lidar else "jpg",
        "is_key_frame": True,
        "height": 0 if is_lidar else 18,
        "width": 0 if is_lidar else 32,
        "filename": f"samples/{name}/{sample}.{'pcd.bin' if is_lidar else 'jpg'}",
        **ends,
    }


def write_track(tables, name, number, samples, heading):
    """An object somewhere around the vehicle, on a straight line."""
    place = CLASSES.index(name)
    *size, speed = KINDS[name]
    angle = 0.6 * place + 0.2
    start = ego_place(number, 1, heading) + (10 + place) * np.array(
        [np.cos(angle), np.sin(angle), 0.05]
    )
    turn = Quaternion(axis=[0, 0, 1], angle=1.3 * place)
    category = next(c for c, own in CLASS_OF_CATEGORY.items() if own == name)
    attribute = attribute_of(name, speed)
    tokens = [f"{sample}-{name}" for sample in samples]
    tables["instance"].append(
        {
            "token": f"i-{number}-{name}",
            "category_token": f"c-{category}",
            "nbr_annotations": len(tokens),
            "first_annotation_token": tokens[0],
            "last_annotation_token": tokens[-1],
        }
    )
    for k, token in enumerate(tokens):
        tables["sample_annotation"].append(
            {
                "token": token,
                "sample_token": samples[k],
                "instance_token": f"i-{number}-{name}",
                "visibility_token": "4",
                "attribute_tokens": [f"a-{attribute}"] if attribute else [],
                "translation": list(start + turn.rotate([0.5 * speed * (k - 1), 0, 0])),
                "size": size,
                "rotation": list(turn.elements),
                "num_lidar_pts": 5,
                "num_radar_pts": 0,
                **neighbours(tokens, k),
            }
        )


def neighbours(tokens, k):
    return {
        "prev": tokens[k - 1] if k else "",
        "next": tokens[k + 1] if k + 1 < len(tokens) else "",
    }


def frames_of_tables(tables, tokens):
    """The dataset dicts of samples, without views, from the devkit's own boxes."""
    frames = []
    for token in tokens:
        data = tables.get("sample_data", tables.get("sample", token)["data"]["LIDAR_TOP"])
        own = tables.get("calibrated_sensor", data["calibrated_sensor_token"])
        pose = tables.get("ego_pose", data["ego_pose_token"])
        _, boxes, _ = tables.get_sample_data(data["token"])
        turn = Quaternion(own["rotation"]).inverse * Quaternion(pose["rotation"]).inverse
        frames.append(
            {
                "image_id": token,
                "sample_token": token,
                "file_name": f"{token}.jpg",
                "width": 32,
                "height": 18,
                "lidar2ego": matrix(own),
                "ego2global": matrix(pose),
                "annotations": [annotation(tables, box, turn) for box in boxes],
            }
        )
    return frames


def matrix(record):
    made = Quaternion(record["rotation"]).transformation_matrix
    made[:3, 3] = record["translation"]
    return made


def annotation(tables, box, turn):
    """Reads nine numbers from the devkit's box, which is in the lidar's frame already."""
    heading = box.rotation_matrix[:, 0]
    vx, vy, _ = tables.box_velocity(box.token)
    velocity = turn.rotate([vx, vy, 0.0])[:2]
    yaw = np.arctan2(heading[1], heading[0])
    return {
        "box": [*box.center, *box.wlh, yaw, *velocity],
        "category_id": CLASSES.index(CLASS_OF_CATEGORY[box.name]),
        "num_points": 5,
        "token": box.token,
    }
