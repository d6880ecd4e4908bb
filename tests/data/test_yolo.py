"""Polygons of YOLO segmentation folders in COCO's format."""

import json

import cv2
import numpy as np
import pytest

from groupdetr_d2.data.checks import DatasetError
from groupdetr_d2.data.coco_file import read_columns
from groupdetr_d2.data.inspection import inspect_coco
from groupdetr_d2.data.segmentations import MISSING, bitmap
from groupdetr_d2.data.yolo import Labels, annotation_of, convert_yolo, read_labels

BOX = "1 0.5 0.5 0.2 0.4"
TRIANGLE = "0 0.1 0.2 0.5 0.2 0.5 0.6"  # on 100 x 50 pixels: (10, 10), (50, 10), (50, 30)
CORNER = "1 0.2 0.2 0.6 0.2 0.6 0.4 0.4 0.4 0.4 0.8 0.2 0.8"  # an L without its lower right


@pytest.fixture
def converted(tmp_path):
    """A function that labels one image of 100 x 50 pixels, and returns the json of the set."""

    def convert(*lines):
        for name in ("images", "labels"):
            (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((50, 100, 3), np.uint8))
        (tmp_path / "labels/a.txt").write_text("\n".join(lines))
        (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
        return convert_yolo(tmp_path, tmp_path / "out")["train"]

    return convert


def annotations_of(path):
    return json.loads(path.read_text())["annotations"]


def test_a_polygon_is_kept_with_its_box_and_its_area(converted):
    triangle, corner = annotations_of(converted(TRIANGLE, CORNER))
    assert triangle["segmentation"] == [[10, 10, 50, 10, 50, 30]]
    assert triangle["bbox"] == [10, 10, 40, 20] and triangle["area"] == 400
    assert corner["segmentation"] == [[20, 10, 60, 10, 60, 20, 40, 20, 40, 40, 20, 40]]
    assert corner["bbox"] == [20, 10, 40, 30] and corner["area"] == 40 * 30 - 20 * 20


def test_the_direction_of_a_polygon_does_not_change_its_area():
    numbers = (0.1, 0.2, 0.5, 0.2, 0.5, 0.6)
    backwards = (0.5, 0.6, 0.5, 0.2, 0.1, 0.2)
    found = [annotation_of((1, 1, 1), x, (100, 50)) for x in (numbers, backwards)]
    assert [x["area"] for x in found] == [400, 400]


def test_pixels_have_three_digits():
    annotation = annotation_of((1, 1, 1), (1 / 3, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 1), (100, 50))
    assert annotation["segmentation"] == [[33.333, 16.667, 66.667, 16.667, 66.667, 50]]
    assert annotation["bbox"] == [33.333, 16.667, 33.334, 33.333]


def test_masks_are_read_as_they_were_drawn(converted):
    path = converted(TRIANGLE, CORNER)
    columns = read_columns(str(path), with_masks=True)
    masks = columns.segmentations
    assert masks.problems.tolist() == [0, 0]
    assert masks[0] == [[10, 10, 50, 10, 50, 30]]
    assert masks.extents.tolist() == [[10, 10, 50, 30], [20, 10, 60, 40]]
    assert bitmap(masks[1], (50, 100)).sum() == columns.areas[1] == 800
    assert not inspect_coco(str(path), str(path.parents[1])).has_errors


def test_boxes_among_polygons_have_no_mask(converted):
    path = converted(BOX, TRIANGLE)
    box, triangle = annotations_of(path)
    assert "segmentation" not in box and box["bbox"] == [40, 15, 20, 20] and box["area"] == 400
    assert "segmentation" in triangle
    problems = read_columns(str(path), with_masks=True).segmentations.problems
    assert problems.tolist() == [MISSING, 0]


def test_what_rounding_puts_outside_the_image_is_clipped(converted):
    path = converted("0 -0.001 0 1.004 0 1.004 1.01 -0.001 1.01")
    (annotation,) = annotations_of(path)
    assert annotation["segmentation"] == [[0, 0, 100, 0, 100, 50, 0, 50]]
    assert annotation["bbox"] == [0, 0, 100, 50] and annotation["area"] == 5000


def test_a_polygon_that_is_cut_off_keeps_its_shape(converted):
    """Moved to the border, the points of this triangle would leave half of the mask."""
    path = converted("0 0.5 0 1.5 0 0.5 2")
    (annotation,) = annotations_of(path)
    assert annotation["segmentation"] == [[50, 0, 150, 0, 50, 100]]
    masks = read_columns(str(path), with_masks=True).segmentations
    assert masks.problems.tolist() == [0]
    assert bitmap(masks[0], (50, 100))[:, 50:].mean() > 0.97
    findings = inspect_coco(str(path), str(path.parents[1])).findings
    assert any("partly outside their image" in str(x) for x in findings)


@pytest.mark.parametrize(
    "points", ["0.1 0.2 0.5 0.2 0.5", "0.1 0.2 0.5 0.2 0.5 0.6 0.1", "0.1 0.2"]
)
def test_polygons_of_too_few_points_and_odd_numbers_are_named(tmp_path, points):
    (tmp_path / "a.txt").write_text(f"{BOX}\n0 {points}")
    number = len(points.split())
    message = rf"a.txt, line 2: neither a box nor a polygon: {number} .* a polygon 6, 8.* mend"
    with pytest.raises(DatasetError, match=message):
        read_labels(tmp_path / "a.txt", Labels(["cat", "dog"]))
    with pytest.raises(DatasetError, match="line 2: neither a box nor a pose: .* a pose 13: mend"):
        read_labels(tmp_path / "a.txt", Labels(["cat", "dog"], keypoints=9))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_polygons_with_numbers_that_are_not_finite_are_named(tmp_path, number):
    (tmp_path / "a.txt").write_text(f"{BOX}\n{TRIANGLE[:-3]}{number}")
    with pytest.raises(DatasetError, match=r"a.txt, line 2: .* not finite: mend the line"):
        read_labels(tmp_path / "a.txt", Labels(["cat", "dog"]))
