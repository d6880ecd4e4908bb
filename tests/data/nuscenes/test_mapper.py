"""A keyframe's images, matrices and boxes change together."""

import cv2
import numpy as np
import pytest
import torch

from groupdetr_d2.data.image_file import ImageReadError
from groupdetr_d2.data.loader import seed_everything
from groupdetr_d2.data.nuscenes.geometry import corners_of, projected
from groupdetr_d2.data.nuscenes.mapper import (
    EarlierFrame,
    FrameMapper,
    SpaceAugmentation,
    ViewAugmentation,
    ViewTransform,
    augmented_boxes,
)
from groupdetr_d2.data.nuscenes.names import CAMERAS
from tests.conftest import CAMERA_ANGLES, make_camera

HEIGHT, WIDTH = 90, 160
BOXES = [[8.0, 12.0, 0.5, 2.0, 4.0, 1.5, 0.3, 1.0, -1.0], [60.0, 0.0, 0, 1, 1, 1, 0, 0, 0]]


def make_views(folder, name="now", seconds=0.0):
    views = []
    for i, (camera, angle) in enumerate(zip(CAMERAS, CAMERA_ANGLES, strict=True)):
        path = folder / f"{name}_{camera}.png"
        if not path.exists():
            rng = np.random.default_rng(i)
            cv2.imwrite(str(path), rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        matrix = make_camera(angle, HEIGHT, WIDTH)
        size = {"file_name": str(path), "width": WIDTH, "height": HEIGHT}
        views.append({"camera": camera, **size, "lidar2img": matrix, "seconds": seconds + 0.01 * i})
    return views


@pytest.fixture
def record(tmp_path):
    annotations = [{"box": box, "category_id": i} for i, box in enumerate(BOXES)]
    annotations[0]["box"] = [*BOXES[0][:7], float("nan"), float("nan")]
    return {
        "sample_token": "a",
        "file_name": "x",
        "width": WIDTH,
        "height": HEIGHT,
        "views": make_views(tmp_path),
        "earlier": [make_views(tmp_path, f"before{i}", 0.08 * (i + 1)) for i in range(6)],
        "annotations": annotations,
    }


def make_mapper(*, is_train=True, earlier=None, rotation=0.39, size=(32, 80)):
    return FrameMapper(
        ViewAugmentation(size, (0.47, 0.625), flips=True),
        SpaceAugmentation(rotation, (0.95, 1.05)),
        earlier=earlier,
        image_format="BGR",
        is_train=is_train,
        box_range=(-51.2, -51.2, -5, 51.2, 51.2, 3),
    )


def test_the_bottom_of_an_image_is_kept_in_evaluation(record):
    found = make_mapper(is_train=False)(record)
    assert found["image"].shape == (6, 3, 32, 80) and "instances" not in found
    matrix = np.eye(4)
    matrix[0, 0] = matrix[1, 1] = 0.5
    matrix[1, 2] = -13  # 45 rows are cut to 32
    np.testing.assert_allclose(found["lidar2img"][0], matrix @ record["views"][0]["lidar2img"])


def test_objects_beyond_the_range_and_unknown_velocities(record):
    found = make_mapper()(record)["instances"]
    assert found.gt_classes.tolist() == [0]
    assert found.gt_boxes3d[0, 7:].tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_projections_follow_the_images(record, seed):
    """A corner that has moved in space is seen where the image was moved to."""
    seed_everything(0, seed)
    mapper = make_mapper()
    found = mapper(record)
    seed_everything(0, seed)
    transform = mapper.images.draw(HEIGHT, WIDTH)
    moved = found["instances"].gt_boxes3d.double().numpy()
    before = corners_of(np.nan_to_num(np.array([record["annotations"][0]["box"]])))
    for old, new in zip(record["views"], found["lidar2img"].numpy(), strict=True):
        pixels, depth = projected(before, old["lidar2img"])
        expected = pixels * transform.scale - [transform.left, transform.top]
        if transform.flip:
            expected[..., 0] = transform.size[1] - expected[..., 0]
        seen, _ = projected(corners_of(moved), new)
        is_front = depth > 0.1
        np.testing.assert_allclose(seen[is_front], expected[is_front], atol=1e-2, rtol=1e-5)


def test_all_views_and_frames_share_one_draw(record):
    """The same photograph in two places looks the same afterwards."""
    for view in record["views"][1:]:
        view["file_name"] = record["views"][0]["file_name"]
    record["earlier"] = [record["views"]]
    found = make_mapper(earlier=EarlierFrame(3, 27))(record)
    assert found["image"].shape[0] == 12
    assert all(torch.equal(x, found["image"][0]) for x in found["image"])


def test_a_draw_is_a_function_of_the_seed(record):
    pair = []
    for _ in range(2):
        seed_everything(3, 7)
        pair.append(make_mapper(earlier=EarlierFrame(3, 27))(record))
    assert torch.equal(pair[0]["image"], pair[1]["image"])
    assert torch.equal(pair[0]["lidar2img"], pair[1]["lidar2img"])
    assert pair[0]["interval"] == pair[1]["interval"]


def test_a_mirrored_crop_is_the_image_itself():
    image = np.arange(90 * 160 * 3, dtype=np.uint8).reshape(90, 160, 3)
    transform = ViewTransform(1.0, left=10, top=20, flip=True, size=(32, 80))
    np.testing.assert_array_equal(transform.apply(image), image[20:52, 10:90][:, ::-1])


def test_beyond_the_right_edge_there_are_zeros():
    image = np.full((90, 160, 3), 200, np.uint8)
    found = ViewTransform(0.25, left=0, top=-10, flip=False, size=(32, 80)).apply(image)
    assert (found[:, 40:] == 0).all() and (found[:10] == 0).all() and (found[10:, :40] == 200).all()


def test_boxes_turn_and_grow_with_space():
    """A quarter turn, and twice as large."""
    change = np.array([[0, -2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    found = augmented_boxes(np.array(BOXES[:1]), change)[0]
    expected = [-24, 16, 1, 4, 8, 3, 0.3 + np.pi / 2, 2, 2]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    "number, chosen", [(0, {None}), (1, {0}), (3, {2}), (6, {3, 4, 5}), (30, set(range(3, 27)))]
)
def test_the_range_of_earlier_frames_in_training(number, chosen):
    np.random.seed(0)
    frame = EarlierFrame(3, 27)
    assert {frame.choose(number, is_train=True) for _ in range(400)} == chosen


@pytest.mark.parametrize("number, chosen", [(0, None), (6, 5), (30, 14)])
def test_the_earlier_frame_of_an_evaluation_is_fixed(number, chosen):
    assert EarlierFrame(3, 27).choose(number, is_train=False) == chosen


@pytest.mark.parametrize("first, end, chosen", [(0, 1, 0), (0, 2, 0), (1, 2, 1), (2, 6, 3)])
def test_the_earlier_frame_of_an_evaluation_is_one_of_those_in_training(first, end, chosen):
    frame = EarlierFrame(first, end, seconds=0.5)
    assert frame.choose(10, is_train=False) == chosen in range(first, end)
    assert frame.typical_seconds == (chosen + 1) * 0.5


def test_seconds_between_frames(record):
    mapper = make_mapper(is_train=False, earlier=EarlierFrame(3, 27))
    assert mapper(record)["interval"] == pytest.approx(0.48)
    record["earlier"] = []
    found = mapper(record)
    assert found["interval"] == pytest.approx(1.245)
    assert torch.equal(found["image"][:6], found["image"][6:])


def test_an_absent_image_is_named(record):
    record["views"][2]["file_name"] = "/absent/CAM_FRONT_LEFT.jpg"
    with pytest.raises(ImageReadError, match="CAM_FRONT_LEFT.jpg.*ON_ERROR skip"):
        make_mapper()(record)
