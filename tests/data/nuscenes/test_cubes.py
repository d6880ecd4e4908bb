"""The generated copy of nuScenes: the devkit reads it, its pictures show what its tables say."""

import hashlib
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from groupdetr_d2.data.nuscenes import cubes
from groupdetr_d2.data.nuscenes.cube_rig import LIDAR, shots_of
from groupdetr_d2.data.nuscenes.cube_spec import CubesSpec
from groupdetr_d2.data.nuscenes.cube_tables import begin_of, file_of
from groupdetr_d2.data.nuscenes.cube_world import world_of
from groupdetr_d2.data.nuscenes.cubes import CubesScene, generate_cubes
from groupdetr_d2.data.nuscenes.geometry import (
    corners_of,
    inverse,
    motion,
    moved_points,
    projected,
    rotation_of,
)
from groupdetr_d2.data.nuscenes.names import CAMERAS, CLASS_OF_CATEGORY, CLASSES

SPEC = CubesSpec(train_scenes=1, val_scenes=2, keyframes=3, sweeps=1, width=160, height=90)
TINY = CubesSpec(train_scenes=1, val_scenes=1, keyframes=2, width=64, height=36, objects=5)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return generate_cubes(SPEC, tmp_path_factory.mktemp("cubes"))


@pytest.fixture(scope="module")
def devkit(copy):
    nuscenes = pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    return nuscenes.NuScenes("v1.0-cubes", str(copy), verbose=False)


def table(copy, name):
    return json.loads((copy / "v1.0-cubes" / f"{name}.json").read_text())


def records_of(copy, name):
    return {record["token"]: record for record in table(copy, name)}


def true_results(devkit, scenes):
    """Objects with points as if they were predicted, in the devkit's format."""
    results = {}
    for sample in devkit.sample:
        if devkit.get("scene", sample["scene_token"])["name"] not in scenes:
            continue
        boxes = results.setdefault(sample["token"], [])
        for i, token in enumerate(sample["anns"]):
            annotation = devkit.get("sample_annotation", token)
            if annotation["num_lidar_pts"] == 0:
                continue
            attributes = [
                devkit.get("attribute", x)["name"] for x in annotation["attribute_tokens"]
            ]
            boxes.append(
                {
                    "sample_token": sample["token"],
                    **{key: annotation[key] for key in ("translation", "size", "rotation")},
                    "velocity": devkit.box_velocity(token)[:2].tolist(),
                    "detection_name": CLASS_OF_CATEGORY[annotation["category_name"]],
                    "detection_score": 1 - i / 1000,
                    "attribute_name": attributes[0] if attributes else "",
                }
            )
    meta = {f"use_{kind}": False for kind in ("camera", "lidar", "radar", "map", "external")}
    return {"meta": meta, "results": results}


def test_the_devkit_gives_the_truth_full_marks(devkit, tmp_path):
    """All ten classes are seen within their ranges, and every chain of annotations is whole."""
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    file = tmp_path / "results.json"
    file.write_text(json.dumps(true_results(devkit, SPEC.scene_names()["cubes_val"])))
    config = config_factory("detection_cvpr_2019")
    folder = str(tmp_path / "out")
    evaluation = DetectionEval(devkit, config, str(file), "cubes_val", folder, verbose=False)
    summary = evaluation.main(render_curves=False)
    assert summary["mean_ap"] == pytest.approx(1)
    assert summary["nd_score"] == pytest.approx(1)
    assert list(summary["tp_errors"].values()) == pytest.approx([0] * 5, abs=1e-6)


def test_the_devkit_projects_with_the_tables_alone(devkit):
    """The devkit's boxes in a camera's frame are ours."""
    scene = CubesScene(SPEC, 0)
    sample = devkit.sample[1]
    for channel in CAMERAS:
        _, boxes, intrinsic = devkit.get_sample_data(sample["data"][channel], box_vis_level=0)
        shot = next(s for s in shots_of(SPEC)[channel] if s.is_key and s.keyframe == 1)
        np.testing.assert_allclose(intrinsic, scene.rig[channel].intrinsic)
        pose = scene.world.ego.poses(np.array([shot.offset / 1e6]))[0]
        to_camera = inverse(pose @ scene.rig[channel].to_ego)
        truth = moved_points(scene.world.objects.boxes_at(0.5)[:, :3], to_camera)
        seen = {box.token for box in boxes}
        for box in devkit.get_boxes(sample["data"][LIDAR]):
            if box.token not in seen:
                continue
            place = sample["anns"].index(box.token)
            found = next(x for x in boxes if x.token == box.token)
            np.testing.assert_allclose(found.center, truth[place], atol=1e-6)


def test_velocities_come_back_from_the_tables(devkit):
    for number, scene in enumerate(devkit.scene):
        objects = world_of(SPEC, number).objects
        sample = devkit.get("sample", scene["first_sample_token"])
        velocities = [devkit.box_velocity(token)[:2] for token in sample["anns"]]
        np.testing.assert_allclose(velocities, objects.boxes[:, 7:9], atol=1e-6)
        assert objects.is_moving.any() and not objects.is_moving.all()


def test_listed_files_are_those_that_exist(copy):
    records = table(copy, "sample_data")
    listed = {record["filename"] for record in records}
    kinds = ("samples/*/*", "sweeps/*/*")
    assert listed == {str(p.relative_to(copy)) for kind in kinds for p in copy.glob(kind)}
    assert len(listed) == len(records)
    for record in records[::7]:
        if record["fileformat"] == "jpg":
            size = (record["height"], record["width"], 3)
            assert cv2.imread(str(copy / record["filename"])).shape == size == (90, 160, 3)
        else:
            points = np.fromfile(copy / record["filename"], np.float32)
            assert points.size and points.size % 5 == 0


def test_every_token_has_its_record(copy):
    names = {
        "log_token": "log",
        "scene_token": "scene",
        "sample_token": "sample",
        "ego_pose_token": "ego_pose",
        "calibrated_sensor_token": "calibrated_sensor",
        "sensor_token": "sensor",
        "category_token": "category",
        "instance_token": "instance",
        "visibility_token": "visibility",
        "attribute_tokens": "attribute",
    }
    known = {name: records_of(copy, name).keys() for name in names.values()}
    for path in (copy / "v1.0-cubes").glob("*.json"):
        for record in table(copy, path.stem) if path.stem != "splits" else []:
            for key, name in names.items():
                tokens = record.get(key, [])
                assert set([tokens] if isinstance(tokens, str) else tokens) <= known[name]


@pytest.mark.parametrize("name", ["sample", "sample_data", "sample_annotation"])
def test_chains_lead_through_time(copy, name):
    records, samples = records_of(copy, name), records_of(copy, "sample")
    time_of = {
        token: record.get("timestamp") or samples[record["sample_token"]]["timestamp"]
        for token, record in records.items()
    }
    for token, record in records.items():
        if record["next"]:
            assert records[record["next"]]["prev"] == token
            assert time_of[token] < time_of[record["next"]]
    assert any(record["next"] and record["prev"] for record in records.values())


def test_sweeps_lie_between_keyframes(copy):
    frames = [x for x in table(copy, "sample_data") if "__CAM_FRONT__" in x["filename"]]
    first_scene = frames[: (SPEC.keyframes - 1) * 2 + 1]
    assert [x["is_key_frame"] for x in first_scene] == [True, False] * 2 + [True]
    assert set(np.diff([x["timestamp"] for x in first_scene])) == {250_000}
    assert first_scene[1]["sample_token"] == first_scene[2]["sample_token"]
    assert first_scene[0]["sample_token"] != first_scene[1]["sample_token"]
    assert not list(copy.glob("sweeps/LIDAR_TOP"))


def test_splits_name_distinct_scenes(copy):
    splits = table(copy, "splits")
    assert {name: len(scenes) for name, scenes in splits.items()} == {
        "cubes_train": 1,
        "cubes_val": 2,
    }
    named = [scene["name"] for scene in table(copy, "scene")]
    assert splits["cubes_train"] + splits["cubes_val"] == named and len(set(named)) == 3


def test_points_are_visible_pixels(copy):
    annotations = table(copy, "sample_annotation")
    points = np.array([x["num_lidar_pts"] for x in annotations])
    assert (points == 0).any() and points.max() > 1000
    assert points[points > 0].min() >= SPEC.min_pixels
    levels = {x["visibility_token"] for x in annotations}
    assert levels <= set("1234") and len(levels) > 1


def hue(colours):
    return cv2.cvtColor(np.float32(colours).reshape(1, -1, 3), cv2.COLOR_BGR2HSV)[0, :, 0]


def test_centres_of_whole_objects_lie_on_their_colours(copy):
    """Pictures, poses, calibrations and boxes agree, as the tables and files have them."""
    sensors, poses = records_of(copy, "calibrated_sensor"), records_of(copy, "ego_pose")
    by_file = {x["filename"]: x for x in table(copy, "sample_data")}
    far_from = []
    for number in range(SPEC.num_scenes):
        scene = CubesScene(SPEC, number)
        for shot in [s for c in CAMERAS for s in shots_of(SPEC)[c]]:
            name = file_of(scene.world, begin_of(number), shot)
            record, rendering = by_file[name], scene.render(shot)
            sensor = sensors[record["calibrated_sensor_token"]]
            pose = poses[record["ego_pose_token"]]
            moves = [
                motion(rotation_of(np.array(x["rotation"])), np.array(x["translation"]))
                for x in (pose, sensor)
            ]
            lidar2img = np.eye(4)
            lidar2img[:3, :3] = sensor["camera_intrinsic"]
            lidar2img = lidar2img @ inverse(moves[0] @ moves[1])
            boxes = scene.world.objects.boxes_at(shot.offset / 1e6)
            corners, depth = projected(corners_of(boxes), lidar2img)
            whole = (depth > 0.5).all(1) & (corners >= 1).all((1, 2))
            whole &= (corners <= [SPEC.width - 2, SPEC.height - 2]).all((1, 2))
            whole &= (rendering.visible == rendering.covered) & (rendering.covered > 40)
            centres = np.round(projected(boxes[:, :3], lidar2img)[0]).astype(int)
            picture = cv2.imread(str(copy / name))
            for i in np.nonzero(whole)[0]:
                x, y = centres[i]
                assert rendering.owner[y, x] == i
                difference = hue(picture[y, x]) - hue(scene.scenery.colours[i])
                far_from.append(abs((difference[0] + 180) % 360 - 180))
    assert len(far_from) > 30
    assert np.median(far_from) < 8 and np.mean(np.array(far_from) < 30) > 0.9


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_the_seed_makes_the_bytes(tmp_path):
    one = generate_cubes(TINY, tmp_path / "a")
    two = generate_cubes(TINY, tmp_path / "b")
    other = generate_cubes(replace(TINY, seed=1), tmp_path / "a")
    assert digests(one) == digests(two) and len(digests(one)) > 20
    assert other.name != one.name
    assert one.stat().st_mode & 0o777 == 0o755  # others may share it
    images = {value for name, value in digests(one).items() if name.endswith("jpg")}
    assert not images & set(digests(other).values())


def test_sweeps_do_not_change_keyframes(tmp_path):
    without = generate_cubes(TINY, tmp_path)
    with_sweeps = generate_cubes(replace(TINY, sweeps=1), tmp_path)
    assert digests(without / "samples") == digests(with_sweeps / "samples")
    assert not (without / "sweeps").exists() and (with_sweeps / "sweeps").exists()


def test_several_processes_write_what_one_does(tmp_path, monkeypatch):
    one = generate_cubes(TINY, tmp_path / "a")
    use_two_processes(monkeypatch)
    assert digests(generate_cubes(TINY, tmp_path / "b")) == digests(one)


def use_two_processes(monkeypatch):
    monkeypatch.setattr(cubes, "MANY", 1)
    monkeypatch.setattr(cubes.os, "cpu_count", lambda: 2)


def test_an_interrupt_while_several_processes_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    use_two_processes(monkeypatch)
    monkeypatch.setattr(cubes.CubesTables, "add_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_cubes(TINY, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_copy_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupt(scene, shots, folder):
        if written:
            raise KeyboardInterrupt
        written.append(original(scene, shots, folder))
        return written[-1]

    original = cubes._write_files
    monkeypatch.setattr(cubes, "_write_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_cubes(TINY, tmp_path)
    assert written and not list(tmp_path.iterdir())


def test_a_faster_process_wins(tmp_path, monkeypatch):
    def write(spec, folder):
        (tmp_path / spec.folder).mkdir()
        (tmp_path / spec.folder / "theirs").touch()
        (folder / "ours").touch()

    monkeypatch.setattr(cubes, "_write", write)
    folder = generate_cubes(TINY, tmp_path)
    assert [p.name for p in folder.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_copy_is_generated_once(tmp_path, monkeypatch):
    first = generate_cubes(TINY, tmp_path)
    monkeypatch.setattr(cubes, "_write", lambda *_: pytest.fail("generated again"))
    assert generate_cubes(TINY, tmp_path) == first


@pytest.fixture
def as_before():
    yield
    cubes.register_cubes(CubesSpec())


def test_both_sets_are_registered_late(tmp_path, monkeypatch, as_before):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cubes.register_cubes(TINY)
    assert not list(tmp_path.iterdir())
    for name in ("cubes_train", "cubes_val"):
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "nuscenes" and metadata.thing_classes == list(CLASSES)
        assert metadata.nuscenes_root == str(tmp_path / "cubes" / TINY.folder)
        assert (metadata.nuscenes_version, metadata.nuscenes_split) == ("v1.0-cubes", name)
        assert metadata.is_generated
    metadata.prepare()
    assert (tmp_path / "cubes" / TINY.folder / "v1.0-cubes" / "splits.json").is_file()


def test_sets_of_others_stay(as_before):
    DatasetCatalog.remove("cubes_val")
    MetadataCatalog.remove("cubes_val")
    DatasetCatalog.register("cubes_val", list)
    try:
        cubes.register_cubes(TINY)
        assert DatasetCatalog.get("cubes_val") == []
        assert MetadataCatalog.get("cubes_train").nuscenes_root.endswith(TINY.folder)
    finally:
        DatasetCatalog.remove("cubes_val")
