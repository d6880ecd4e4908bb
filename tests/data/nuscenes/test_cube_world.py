"""Scenes of cuboids: drives, objects that never meet, and moments of the sensors."""

from dataclasses import replace

import numpy as np
import pytest

from groupdetr_d2.data.nuscenes.cube_rig import shots_of
from groupdetr_d2.data.nuscenes.cube_spec import CubesSpec
from groupdetr_d2.data.nuscenes.cube_world import EGO_BOX, EgoPath, world_of
from groupdetr_d2.data.nuscenes.geometry import moved_boxes
from groupdetr_d2.data.nuscenes.names import CLASS_OF_CATEGORY, CLASS_RANGE, CLASSES


def footprint_points(box):
    """Points (P, 2) all over an object's footprint."""
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 15), np.linspace(-0.5, 0.5, 15)), -1)
    points = grid.reshape(-1, 2) * box[[4, 3]]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    return points @ np.array([[cos, sin], [-sin, cos]]) + box[:2]


def is_inside(points, box):
    cos, sin = np.cos(box[6]), np.sin(box[6])
    own = (points - box[:2]) @ np.array([[cos, -sin], [sin, cos]])
    return (np.abs(own) < box[[4, 3]] / 2).all(1)


@pytest.mark.parametrize("number", range(4))
def test_objects_never_meet(number):
    spec = replace(CubesSpec(), objects=25)
    world = world_of(spec, number)
    assert len(world.objects.boxes) > 15
    for seconds in np.linspace(-0.05, spec.seconds, 9):
        pose = world.ego.poses(np.array([seconds]))[0]
        boxes = world.objects.boxes_at(seconds)
        own = moved_boxes(np.array([EGO_BOX]), pose)
        everything = np.concatenate([boxes, own])
        for i, box in enumerate(everything):
            points = footprint_points(box)
            assert not any(is_inside(points, x).any() for x in np.delete(everything, i, 0))


def test_objects_are_where_and_what_the_specification_says():
    spec = replace(CubesSpec(), near=6, far=9, moving=0)
    names = set()
    for number in range(3):
        world = world_of(spec, number)
        around = world.ego.translations(np.linspace(0, spec.seconds, 50))[:, None, :2]
        distance = np.linalg.norm(world.objects.boxes[:, :2] - around, axis=-1).min(0)
        half = world.objects.boxes[:, 4] / 2
        assert (distance <= np.maximum(9, 6 + half) + 0.1).all()
        assert not world.objects.is_moving.any()
        names |= {CLASSES[i] for i in world.objects.classes}
    assert names == set(CLASSES)
    assert CubesSpec().far <= min(CLASS_RANGE.values())


def test_attributes_are_true():
    for number in range(5):
        objects = world_of(CubesSpec(), number).objects
        for i, name in enumerate(objects.attributes):
            speed = np.linalg.norm(objects.boxes[i, 7:9])
            kind = CLASSES[objects.classes[i]]
            assert CLASS_OF_CATEGORY[objects.categories[i]] == kind
            assert (name == "") == (kind in ("barrier", "traffic_cone"))
            assert (speed > 0.2) == name.endswith(("moving", "with_rider"))
            heading = np.array([np.cos(objects.boxes[i, 6]), np.sin(objects.boxes[i, 6])])
            np.testing.assert_allclose(objects.boxes[i, 7:9], speed * heading, atol=1e-9)


def test_the_vehicle_drives_where_it_heads():
    ego = EgoPath(start=(3.0, 4.0), heading=2.0, speed=5.0, turn=0.4, tilt=0.0)
    seconds, step = np.array([0.0, 0.7, 2.0]), 1e-5
    velocity = (ego.translations(seconds + step) - ego.translations(seconds - step)) / (2 * step)
    forward = ego.poses(seconds)[:, :3, 0]
    np.testing.assert_allclose(velocity, 5 * forward, atol=1e-6)
    np.testing.assert_allclose(forward[1, :2], [np.cos(2.28), np.sin(2.28)])
    np.testing.assert_allclose(ego.translations(np.zeros(1)), [[3, 4, 0]])


def test_frames_between_keyframes_are_those_of_nuscenes():
    """Fifteen camera frames back are 1.25 s, as PETRv2 has it."""
    shots = shots_of(replace(CubesSpec(), keyframes=4, sweeps=5))["CAM_BACK"]
    assert [shot.is_key for shot in shots] == ([True] + [False] * 5) * 3 + [True]
    assert shots[-1].offset - shots[-16].offset == 1_250_000
    assert [shot.keyframe for shot in shots[:8]] == [0] + [1] * 6 + [2]
