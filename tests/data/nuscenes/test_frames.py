"""The frames of a split agree with nuScenes' devkit, and with what is computed of the tables."""

import itertools
import os
import pickle

import numpy as np
import pytest
from pyquaternion import Quaternion

from groupdetr_d2.data.loader import seed_everything
from groupdetr_d2.data.nuscenes.catalog import open_frames
from groupdetr_d2.data.nuscenes.geometry import inverse, motion, moved_points, projected
from groupdetr_d2.data.nuscenes.mapper import FrameMapper, SpaceAugmentation, ViewAugmentation
from groupdetr_d2.data.nuscenes.names import CAMERAS, CLASS_OF_CATEGORY, CLASSES
from tests.data.nuscenes.tiny_copy import KEYFRAMES, SIZE, SWEEPS, token, write_copy

nuscenes = pytest.importorskip("nuscenes.nuscenes", reason="nuscenes-devkit is absent")
utils = pytest.importorskip("nuscenes.utils.geometry_utils")


@pytest.fixture(scope="module")
def devkit(tiny_root):
    return nuscenes.NuScenes("v1.0-mini", str(tiny_root), verbose=False)


@pytest.fixture
def frames(tiny_root):
    return open_frames(tiny_root, "v1.0-mini", "mini_train")


def pose_of(record):
    return motion(Quaternion(record["rotation"]).rotation_matrix, record["translation"])


def lidar2global(devkit, sample):
    file = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    sensor = devkit.get("calibrated_sensor", file["calibrated_sensor_token"])
    return pose_of(devkit.get("ego_pose", file["ego_pose_token"])) @ pose_of(sensor)


def test_frames_are_those_of_the_split_in_the_order_of_time(frames, devkit):
    assert frames.tokens == [token("sample", "scene-0061", i) for i in range(KEYFRAMES)]
    assert frames.scenes == ["scene-0061"] and frames.class_names == list(CLASSES)
    assert len(frames) == KEYFRAMES and [frames.position_of(t) for t in frames.tokens] == [0, 1, 2]
    frame = frames[1]
    assert frame["image_id"] == frame["sample_token"] == frames.tokens[1]
    assert frame["timestamp"] == devkit.get("sample", frames.tokens[1])["timestamp"]
    assert (frame["width"], frame["height"]) == SIZE and frame["scene"] == "scene-0061"
    assert [view["camera"] for view in frame["views"]] == list(CAMERAS)
    assert frame["file_name"] == frame["views"][0]["file_name"]
    whole = frame["ego2global"] @ frame["lidar2ego"]
    np.testing.assert_allclose(
        whole, lidar2global(devkit, devkit.get("sample", frames.tokens[1])), atol=1e-9
    )


def test_projections_are_those_of_the_devkit(frames, devkit):
    """Every corner of every box, in every camera, whether it is in sight or not."""
    seen = 0
    for frame in frames:
        sample = devkit.get("sample", frame["sample_token"])
        to_lidar = inverse(lidar2global(devkit, sample))
        for view in frame["views"]:
            found = devkit.get_sample_data(
                sample["data"][view["camera"]], box_vis_level=utils.BoxVisibility.NONE
            )
            path, boxes, matrix = found
            assert os.path.samefile(path, view["file_name"])
            for box in boxes:
                theirs = utils.view_points(box.corners(), matrix, normalize=True)[:2].T
                corners = devkit.get_box(box.token).corners().T
                ours, depth = projected(moved_points(corners, to_lidar), view["lidar2img"])
                np.testing.assert_allclose(depth, box.corners()[2], atol=1e-9)
                ahead = depth > 0.1
                np.testing.assert_allclose(ours[ahead], theirs[ahead], atol=1e-6)
                seen += ahead.sum()
    assert seen > 1000


@pytest.mark.parametrize("seed", range(4))
def test_augmented_projections_are_those_of_the_devkit(frames, devkit, seed):
    """The devkit's pixels, resized, cropped and flipped, are where turned and scaled space is."""
    images = ViewAugmentation((12, 24), (0.8, 1.2), flips=True)
    mapper = FrameMapper(
        images,
        SpaceAugmentation(0.4, (0.9, 1.1)),
        earlier=None,
        image_format="BGR",
        is_train=True,
        box_range=(-60, -60, -10, 60, 60, 10),
    )
    frame, seen = frames[1], 0
    seed_everything(0, seed)
    found = mapper(frame)["lidar2img"].numpy()
    seed_everything(0, seed)
    transform, change = images.draw(SIZE[1], SIZE[0]), mapper.space.draw()
    sample = devkit.get("sample", frame["sample_token"])
    to_space = change @ inverse(lidar2global(devkit, sample))
    for view, matrix in zip(frame["views"], found, strict=True):
        _, boxes, intrinsic = devkit.get_sample_data(
            sample["data"][view["camera"]], box_vis_level=utils.BoxVisibility.NONE
        )
        for box in boxes:
            theirs = utils.view_points(box.corners(), intrinsic, normalize=True)[:2].T
            theirs = theirs * transform.scale - [transform.left, transform.top]
            if transform.flip:
                theirs[:, 0] = transform.size[1] - theirs[:, 0]
            corners = devkit.get_box(box.token).corners().T
            ours, depth = projected(moved_points(corners, to_space), matrix)
            np.testing.assert_allclose(ours[depth > 0.1], theirs[depth > 0.1], atol=1e-6)
            seen += (depth > 0.1).sum()
    assert seen > 300


def test_boxes_are_those_of_the_devkit_in_the_lidar_frame(frames, devkit):
    for frame in frames:
        sample = devkit.get("sample", frame["sample_token"])
        _, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
        assert [b.token for b in boxes] == sample["anns"]
        back = inverse(lidar2global(devkit, sample))[:3, :3]
        kept = []
        for box in boxes:
            record = devkit.get("sample_annotation", box.token)
            points = record["num_lidar_pts"] + record["num_radar_pts"]
            if box.name in CLASS_OF_CATEGORY and points:
                heading = box.orientation.rotation_matrix[:, 0]
                speed = devkit.box_velocity(box.token)
                velocity = (back @ [speed[0], speed[1], 0 * speed[0]])[:2]
                yaw = np.arctan2(heading[1], heading[0])
                kept.append((box.token, [*box.center, *box.wlh, yaw, *velocity], box.name, points))
        assert [a["token"] for a in frame["annotations"]] == [x[0] for x in kept]
        np.testing.assert_allclose(
            [a["box"] for a in frame["annotations"]], [x[1] for x in kept], atol=1e-9
        )
        assert [CLASSES[a["category_id"]] for a in frame["annotations"]] == [
            CLASS_OF_CATEGORY[x[2]] for x in kept
        ]
        assert [a["num_points"] for a in frame["annotations"]] == [x[3] for x in kept]
        assert len(kept) < len(boxes)  # some kinds and some without points are left out


def test_velocities_have_the_devkits_exceptions(tmp_path):
    """A gap of more than 1.5 s, and tracks of one box, have no velocity."""

    def edit(tables):
        for scene in ("scene-0061", "scene-0103"):
            name = token("sample", scene, KEYFRAMES - 1)
            late = next(x for x in tables["sample"] if x["token"] == name)
            late["timestamp"] += 1_200_000

    write_copy(tmp_path, edit=edit)
    devkit = nuscenes.NuScenes("v1.0-mini", str(tmp_path), verbose=False)
    frames = open_frames(tmp_path, "v1.0-mini", "mini_train")
    unknown = []
    for frame in frames:
        turned = frame["ego2global"][:3, :3] @ frame["lidar2ego"][:3, :3]
        for annotation in frame["annotations"]:
            wanted = devkit.box_velocity(annotation["token"])
            box = np.array(annotation["box"])
            unknown.append(np.isnan(wanted[0]))
            flat = turned.T @ [*wanted[:2], 0 * wanted[0]]
            np.testing.assert_allclose(box[7:], flat[:2], atol=1e-9)
    assert 10 < sum(unknown) < len(unknown) - 10


def test_earlier_frames_have_the_official_order_and_the_current_lidar_frame(frames, devkit):
    """Five images before a keyframe, latest first, then the keyframe before, and so on."""
    assert len(frames[0]["earlier"]) == 0 and list(frames[0]["earlier"]) == []
    frame = frames[2]
    sample = devkit.get("sample", frame["sample_token"])
    whole = lidar2global(devkit, sample)
    earlier = frame["earlier"]
    assert len(earlier) == 2 * (SWEEPS + 1)
    assert [x[0]["file_name"] for x in earlier[:2]] == [
        earlier[i][0]["file_name"] for i in range(2)
    ]
    for camera, number in zip(CAMERAS, itertools.count(), strict=False):
        name = sample["data"][camera]
        for views in earlier:
            name = devkit.get("sample_data", name)["prev"]
            file, view = devkit.get("sample_data", name), views[number]
            sensor = devkit.get("calibrated_sensor", file["calibrated_sensor_token"])
            pose = pose_of(devkit.get("ego_pose", file["ego_pose_token"]))
            matrix = np.eye(4)
            matrix[:3, :3] = sensor["camera_intrinsic"]
            wanted = matrix @ np.linalg.inv(pose @ pose_of(sensor)) @ whole
            np.testing.assert_allclose(view["lidar2img"], wanted, atol=1e-6)
            assert view["file_name"].endswith(file["filename"]) and view["camera"] == camera
            seconds = (sample["timestamp"] - file["timestamp"]) / 1e6
            assert view["seconds"] == pytest.approx(seconds, abs=1e-9)
    steps = np.diff([views[0]["seconds"] for views in earlier])
    assert (steps > 0.08).all() and (steps < 0.09).all()
    is_key = ["/samples/" in views[0]["file_name"] for views in earlier]
    assert [i for i, key in enumerate(is_key) if key] == [5, 11]


def test_an_entry_is_repeated_where_a_camera_has_no_image_left(tmp_path):
    """As in the official PETRv2, for all cameras; the keyframe before follows all the same."""

    def edit(tables):
        gone = {token("file", "scene-0061", "CAM_BACK", i) for i in (1, 2, 3)}
        tables["sample_data"] = [x for x in tables["sample_data"] if x["token"] not in gone]

    write_copy(tmp_path, edit=edit)
    frames = open_frames(tmp_path, "v1.0-mini", "mini_train")
    number = CAMERAS.index("CAM_BACK")
    names = [views[number]["file_name"].rsplit("/", 1)[1] for views in frames[1]["earlier"]]
    front = [views[0]["file_name"].rsplit("/", 1)[1] for views in frames[1]["earlier"]]
    assert len(names) == 6
    assert names[2] == names[3] == names[4] == names[5] and front[2] == front[3] == front[4]
    assert len(set(front)) == 4 and "/samples/" in frames[1]["earlier"][5][0]["file_name"]


def test_frames_travel_to_other_processes_by_their_file(frames):
    again = pickle.loads(pickle.dumps(frames))
    assert len(pickle.dumps(frames)) < 1000 and again.fingerprint == frames.fingerprint
    frame = frames[2]
    copied = pickle.loads(pickle.dumps(frame))
    assert len(pickle.dumps(frame)) < 10_000
    for mine, theirs in zip(frame["earlier"], copied["earlier"], strict=True):
        np.testing.assert_array_equal(mine[3]["lidar2img"], theirs[3]["lidar2img"])


def test_frames_without_objects_can_be_left_out(tmp_path):
    def edit(tables):
        for x in tables["sample_annotation"]:
            if x["sample_token"] == token("sample", "scene-0061", 1):
                x["num_lidar_pts"] = x["num_radar_pts"] = 0

    write_copy(tmp_path, edit=edit)
    frames = open_frames(tmp_path, "v1.0-mini", "mini_train")
    assert [len(frame["annotations"]) for frame in frames] == frames.counts.tolist()
    assert frames.counts[1] == 0 and frames[1]["annotations"] == []
    some = frames.with_objects()
    assert some.tokens == [frames.tokens[0], frames.tokens[2]]
    assert some.fingerprint != frames.fingerprint and some.counts.all()
    assert some.position_of(frames.tokens[2]) == 1 and len(frames[1:]) == 2
    assert len(some[1]["earlier"]) == 2 * (SWEEPS + 1)  # images of frames that were left out stay
    assert (frames.sizes[:, 0] > frames.sizes[:, 1]).all()
    with pytest.raises(ValueError, match="no keyframe of the 2.*'gone'"):
        some.position_of("gone")
