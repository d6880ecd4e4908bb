"""Pictures of cuboids: which is in front, how large it is, and which way it heads."""

import numpy as np
import pytest

from groupdetr_d2.data.nuscenes.cube_rendering import Scenery, render
from groupdetr_d2.data.nuscenes.geometry import motion


def plain_scenery(number):
    colours = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0]])[:number]
    texture, noise = np.zeros((256, 256, 3), np.float32), np.zeros((160, 240, 3), np.float32)
    return Scenery(colours, np.array([0.0, 0, 1]), texture, np.zeros(3, np.float32), noise)


def seen_from_origin(boxes):
    """A picture (80, 120) from 1 m above the origin along x, with a focal length of 100 pixels."""
    rotation = np.stack([(0.0, -1, 0), (0, 0, -1.0), (1.0, 0, 0)], 1)
    camera = motion(rotation, np.array([0, 0, 1.0]))
    intrinsic = np.array([[100.0, 0, 60], [0, 100, 40], [0, 0, 1]])
    boxes = np.array(boxes, dtype=np.float64)
    is_lit, rng = np.zeros(len(boxes), bool), np.random.default_rng(0)
    return render(camera, intrinsic, boxes, is_lit, plain_scenery(len(boxes)), rng)


NEAR_BOX = [10, 0, 1, 1, 2, 2, 0, 0, 0]
FAR_BOX = [20, 0, 1.5, 8, 2, 3, 0.3, 0, 0]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_box_hides_the_farther_one(order):
    boxes = [[NEAR_BOX, FAR_BOX][i] for i in order]
    rendering = seen_from_origin(boxes)
    near, far = order.index(0), order.index(1)
    assert rendering.owner[40, 60] == near
    assert rendering.visible[near] == rendering.covered[near]
    alone = [seen_from_origin([box]) for box in (NEAR_BOX, FAR_BOX)]
    hidden = ((alone[0].owner == 0) & (alone[1].owner == 0)).sum()
    assert hidden > 100
    assert rendering.covered[far] == alone[1].covered[0] == alone[1].visible[0]
    assert rendering.visible[far] == rendering.covered[far] - hidden > 100


def test_a_long_box_is_before_one_thing_and_behind_another():
    """Distances of centres do not tell which is in front."""
    long = [14, 2, 1.5, 2, 14, 3, 0, 0, 0]  # from 7 m to 21 m, on the left
    before, behind = [6, 0.6, 1, 0.5, 0.5, 2, 0, 0, 0], [17, 4.0, 1, 0.5, 0.5, 2, 0, 0, 0]
    rendering = seen_from_origin([long, before, behind])
    assert rendering.visible[1] == rendering.covered[1] > 0
    assert rendering.visible[2] == 0 < rendering.covered[2]


def test_a_face_has_the_size_of_its_projection():
    """The back face is 9 m away, 1 m wide and 2 m high."""
    rows, columns = np.nonzero(seen_from_origin([NEAR_BOX]).owner == 0)
    half = 100 / 9
    assert (columns.min(), columns.max()) == (np.ceil(60 - half / 2), np.floor(60 + half / 2))
    assert (rows.min(), rows.max()) == (np.ceil(40 - half), np.floor(40 + half))


def test_things_behind_and_around_the_camera_are_harmless():
    rendering = seen_from_origin([[-5, 0, 1, 1, 2, 2, 0, 0, 0], [0, 3, 1, 1, 20, 2, 0, 0, 0]])
    assert rendering.covered[0] == 0 < rendering.visible[1]
    assert seen_from_origin(np.zeros((0, 9))).owner.max() == -1


def test_front_and_back_look_different():
    front = seen_from_origin([[10, 0, 1, 2, 2, 2, np.pi, 0, 0]]).picture
    back = seen_from_origin([[10, 0, 1, 2, 2, 2, 0, 0, 0]]).picture
    assert front[36, 60].min() > 80 > back[36, 60].min()  # the pane
    assert front[47, 60].max() > 2 * back[47, 60].max()  # the dark part
