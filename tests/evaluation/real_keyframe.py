"""The real keyframe of nuScenes among the shared data, as a dataset dict with its photographs."""

import json

import cv2
import numpy as np

from groupdetr_d2.data.nuscenes.names import CAMERAS, CLASSES


def real_keyframe(root):
    """Reads the views, the valid annotations and the photographs of the one keyframe below root."""
    record = json.loads((root / "nuscenes_infos_1sample.json").read_text())
    names = {place: name for name, place in record["metainfo"]["categories"].items()}
    (own,) = record["data_list"]
    views = []
    for camera in CAMERAS:
        image, intrinsic = own["images"][camera], np.eye(4)
        intrinsic[:3, :3] = image["cam2img"]
        views.append(
            {
                "camera": camera,
                "file_name": str(root / "samples" / image["img_path"]),
                "width": 1600,
                "height": 900,
                "lidar2img": intrinsic @ np.array(image["lidar2cam"]),
            }
        )
    annotations = []
    for instance in own["instances"]:
        if instance["bbox_3d_isvalid"] and instance["bbox_label_3d"] >= 0:
            x, y, z, length, width, height, yaw = instance["bbox_3d"]
            box = [x, y, z, width, length, height, yaw, *instance["velocity"]]
            name = names[instance["bbox_label_3d"]]
            annotations.append({"box": box, "category_id": CLASSES.index(name)})
    frame = {
        "sample_token": own["token"],
        "views": views,
        "height": 900,
        "width": 1600,
        "annotations": annotations,
        "lidar2ego": np.array(own["lidar_points"]["lidar2ego"]),
        "ego2global": np.array(own["ego2global"]),
    }
    return frame, [cv2.imread(view["file_name"]) for view in views]


def real_boxes2d(root):
    """Reads the 2D boxes x0, y0, x1, y1 of the keyframe, with their cameras and classes."""
    record = json.loads((root / "annotations" / "cams.json").read_text())
    names = {category["id"]: category["name"] for category in record["categories"]}
    cameras = {image["id"]: image["cam"] for image in record["images"]}
    for a in record["annotations"]:
        x, y, width, height = a["bbox"]
        yield cameras[a["image_id"]], names[a["category_id"]], [x, y, x + width, y + height]
