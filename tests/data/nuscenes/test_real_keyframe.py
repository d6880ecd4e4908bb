"""A real keyframe of nuScenes, written as tables, comes back with the matrices it was given."""

import json

import numpy as np
import pytest
from PIL import Image

from groupdetr_d2.data.nuscenes.catalog import open_frames
from groupdetr_d2.data.nuscenes.checking import check_nuscenes
from groupdetr_d2.data.nuscenes.geometry import (
    corners_of,
    inverse,
    motion,
    moved_boxes,
    moved_points,
    projected,
    quaternion_of,
    quaternion_of_yaw,
    rotation_of,
)
from groupdetr_d2.data.nuscenes.names import CAMERAS, CLASS_OF_CATEGORY, CLASSES
from tests.data.nuscenes.tiny_copy import tables_of, token, write_tables

SCENE = "scene-0061"
CATEGORY_OF = {name: category for category, name in CLASS_OF_CATEGORY.items()}


@pytest.fixture(scope="module")
def keyframe():
    from tests.conftest import DATA

    path = DATA / "nuscenes_sample" / "nuscenes_infos_1sample.json"
    if not path.is_file():
        pytest.skip(f"{path} with a real keyframe is absent (set GROUPDETR_TEST_DATA)")
    content = json.loads(path.read_text())
    names = {number: name for name, number in content["metainfo"]["categories"].items()}
    return content["data_list"][0], names, path.parent / "samples"


def matrix(rows):
    """A motion of rows that were rounded to float32."""
    rows = np.array(rows)
    return motion(rotation_of(quaternion_of(rows[:3, :3])), rows[:3, 3])


def place(made):
    return {"translation": made[:3, 3].tolist(), "rotation": quaternion_of(made[:3, :3]).tolist()}


def boxes_of(instances):
    """Nine numbers in the lidar frame of theirs, x y z l w h yaw."""
    rows = [[*x["bbox_3d"], *x["velocity"]] for x in instances]
    return np.array(rows)[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]


@pytest.fixture(scope="module")
def root(keyframe, tmp_path_factory):
    """A copy with this keyframe alone."""
    data, names, images = keyframe
    folder, tables = tmp_path_factory.mktemp("real"), tables_of((SCENE,))
    time = round(data["timestamp"] * 1e6)
    sample = {"token": data["token"], "timestamp": time, "scene_token": token("scene", SCENE)}
    tables["sample"] = [{**sample, "prev": "", "next": ""}]
    ego2global = matrix(data["ego2global"])
    lidar2global = ego2global @ matrix(data["lidar_points"]["lidar2ego"])
    files = {"LIDAR_TOP": {"img_path": data["lidar_points"]["lidar_path"], **data}}
    tables["sample_data"], tables["ego_pose"], tables["calibrated_sensor"] = [], [], []
    for channel, x in {**files, **data["images"]}.items():
        is_camera = channel in CAMERAS
        to_ego = matrix(x["cam2ego"] if is_camera else data["lidar_points"]["lidar2ego"])
        pose = ego2global
        if is_camera:  # its own, at the camera's time
            pose = lidar2global @ inverse(matrix(x["lidar2cam"])) @ inverse(to_ego)
            (folder / "samples").mkdir(exist_ok=True)
            (folder / "samples" / x["img_path"]).symlink_to(images / x["img_path"])
        name = token(channel)
        tables["ego_pose"].append({"token": name, "timestamp": 0, **place(pose)})
        own = {"token": name, "sensor_token": token("sensor", channel), **place(to_ego)}
        tables["calibrated_sensor"].append({**own, "camera_intrinsic": x.get("cam2img", [])})
        links = {"ego_pose_token": name, "calibrated_sensor_token": name, "prev": "", "next": ""}
        about = {"token": name, "sample_token": data["token"], "is_key_frame": True, **links}
        size = {"width": 1600 * is_camera, "height": 900 * is_camera}
        file = {"filename": f"samples/{x['img_path']}", "timestamp": round(x["timestamp"] * 1e6)}
        tables["sample_data"].append({**about, **size, **file})
    tables["instance"], tables["sample_annotation"] = [], []
    boxes = boxes_of(data["instances"])
    turned = lidar2global[:3, :3] @ rotation_of(quaternion_of_yaw(boxes[:, 6]))
    for i, x in enumerate(data["instances"]):
        kind = token("category", CATEGORY_OF.get(names.get(x["bbox_label_3d"]), "animal"))
        tables["instance"].append({"token": str(i), "category_token": kind})
        box = {
            "token": str(i),
            "sample_token": data["token"],
            "instance_token": str(i),
            "attribute_tokens": [],
            "translation": moved_points(boxes[i : i + 1, :3], lidar2global)[0].tolist(),
            "size": boxes[i, 3:6].tolist(),
            "rotation": quaternion_of(turned[i]).tolist(),
            "num_lidar_pts": x["num_lidar_pts"],
            "num_radar_pts": x["num_radar_pts"],
        }
        tables["sample_annotation"].append({**box, "prev": "", "next": ""})
    write_tables(folder, "v1.0-mini", tables)
    (folder / "maps").mkdir()
    Image.new("L", (8, 8)).save(folder / "maps" / "map.png")
    return folder


def test_its_matrices_and_boxes_come_back(keyframe, root):
    data, names, _ = keyframe
    (frame,) = open_frames(root, "v1.0-mini", "mini_train")
    for view in frame["views"]:
        given = data["images"][view["camera"]]
        whole = np.eye(4)
        whole[:3, :3] = given["cam2img"]
        wanted = whole @ np.array(given["lidar2cam"])
        np.testing.assert_allclose(view["lidar2img"], wanted, rtol=1e-5, atol=1e-2)
        seconds = data["timestamp"] - given["timestamp"]
        assert view["seconds"] == pytest.approx(seconds, abs=2e-6) and 0 <= seconds < 0.05
        assert Image.open(view["file_name"]).size == (view["width"], view["height"])
    valid = [x for x in data["instances"] if x["bbox_3d_isvalid"] and x["bbox_label_3d"] >= 0]
    ours = np.array([a["box"] for a in frame["annotations"]])
    wanted = boxes_of(valid)
    assert len(ours) == len(valid) == 65
    np.testing.assert_allclose(ours[:, :6], wanted[:, :6], atol=1e-4)
    difference = ours[:, 6] - wanted[:, 6]
    np.testing.assert_allclose(np.cos(difference), 1, atol=1e-8)
    kinds = [CLASSES[a["category_id"]] for a in frame["annotations"]]
    assert kinds == [names[x["bbox_label_3d"]] for x in valid]


def test_boxes_sit_on_what_the_photographs_show(keyframe, root):
    """The two-dimensional boxes that come with the keyframe lie around the projected corners."""
    data, _, _ = keyframe
    (frame,) = open_frames(root, "v1.0-mini", "mini_train")
    corners = corners_of(boxes_of(data["instances"]))  # those without points, too
    seen, worst = 0, 1.0
    for view in frame["views"]:
        pixels, depth = projected(corners, view["lidar2img"])
        low, high = pixels.min(1), pixels.max(1)
        for x in data["cam_instances"][view["camera"]]:
            x0, y0, x1, y1 = x["bbox"]
            if x0 < 5 or y0 < 5 or x1 > 1595 or y1 > 895:  # cut by the border
                continue
            inner = np.minimum(high, [x1, y1]) - np.maximum(low, [x0, y0])
            common = inner.clip(0).prod(1)
            union = (high - low).prod(1) + (x1 - x0) * (y1 - y0) - common
            overlap = np.where((depth > 0).all(1), common / union, 0)
            worst = min(worst, overlap.max())
            seen += 1
    assert seen > 50 and worst > 0.8, worst  # boxes of nine numbers do not lean, the vehicle does


def test_boxes_move_as_the_devkits_do(keyframe):
    box_class = pytest.importorskip("nuscenes.utils.data_classes", reason="no devkit").Box
    quaternion = pytest.importorskip("pyquaternion").Quaternion
    data, _, _ = keyframe
    boxes = boxes_of(data["instances"])
    boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
    moves = matrix(data["ego2global"]) @ matrix(data["lidar_points"]["lidar2ego"])
    ours = moved_boxes(boxes, moves)
    for box, moved in zip(boxes, ours, strict=True):
        turned = quaternion(quaternion_of_yaw(box[6]))
        theirs = box_class(box[:3], box[3:6], turned, velocity=(box[7], box[8], 0.0))
        theirs.rotate(quaternion(quaternion_of(moves[:3, :3])))
        theirs.translate(moves[:3, 3])
        heading = theirs.orientation.rotation_matrix[:, 0]
        wanted = [*theirs.center, *theirs.wlh, np.arctan2(heading[1], heading[0])]
        np.testing.assert_allclose(moved, [*wanted, *theirs.velocity[:2]], atol=1e-9)


def test_nothing_is_wrong_with_it(root):
    found = check_nuscenes(root, "v1.0-mini")
    assert not found.has_errors and found.numbers["images opened"] == 6
    assert [x.text for x in found.findings] == [
        "classes without objects, whose AP is 0 and lowers NDS"
    ]
