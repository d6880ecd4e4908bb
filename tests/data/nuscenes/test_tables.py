"""Whatever is wrong with the tables is named, with file, record and remedy."""

import json
import sys

import pytest

from groupdetr_d2.data.nuscenes.building import build_index, read_content
from groupdetr_d2.data.nuscenes.splits import official_splits, scenes_of, split_names
from groupdetr_d2.data.nuscenes.tables import NuScenesError, Scene, Tables
from groupdetr_d2.errors import UserError
from tests.data.nuscenes.tiny_copy import SCENES, token


def build(root):
    return build_index(read_content(Tables(root, "v1.0-mini")), ["scene-0061"])


def first(tables, table, **changes):
    tables[table][0].update(changes)


def without(tables, table, name):
    tables[table] = [x for x in tables[table] if x["token"] != name]


ANNOTATION = token("annotation", "scene-0061", 0, 0)
FILE = token("file", "scene-0061", "CAM_FRONT", 0)
SAMPLE = token("sample", "scene-0061", 0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update(ego_pose=None), "table ego_pose is missing: .*ego_pose.json"),
        (lambda t: t.update(sample='[{"token": "a", '), "sample.json is no list .*truncated"),
        (lambda t: t.update(sample="{}"), "sample.json is no list of records"),
        (lambda t: t.update(sample=""), "sample.json cannot be read"),
        (lambda t: t.update(sample="[NaN]"), "sample.json is no list .*malformed"),
        (
            lambda t: first(t, "sample_annotation", num_lidar_pts=3.5),
            f"sample_annotation.json, record 1 .token {ANNOTATION}.*num_lidar_pts",
        ),
        (
            lambda t: first(t, "sample_annotation", size=[1, 2]),
            f"record 1 .token {ANNOTATION}.*length 3 - at `..size",
        ),
        (lambda t: t["scene"][0].pop("name"), "scene.json, record 1 .*missing required .*name"),
        (lambda t: t["scene"].append(3), "scene.json, record 3 .token missing"),
        (
            lambda t: first(t, "sample_data", ego_pose_token="gone"),
            f"ego_pose.json has no record with the token 'gone', which the record {FILE} .*"
            "sample_data",
        ),
        (
            lambda t: first(t, "sample_data", calibrated_sensor_token="gone"),
            f"calibrated_sensor.json has no .*'gone'.*{FILE}",
        ),
        (lambda t: first(t, "sample_data", sample_token="gone"), f"sample.json.*'gone'.*{FILE}"),
        (
            lambda t: first(t, "sample_annotation", prev="gone"),
            f"sample_annotation.json.*'gone'.*{ANNOTATION}",
        ),
        (lambda t: first(t, "sample_annotation", instance_token="x"), "instance.json.*'x'"),
        (lambda t: first(t, "instance", category_token="x"), "category.json has no .*'x'"),
        (lambda t: first(t, "sample", scene_token="x"), f"scene.json has no .*'x'.*{SAMPLE}"),
        (lambda t: first(t, "sample", prev="x"), f"sample.json has no .*'x'.*{SAMPLE}"),
        (
            lambda t: first(t, "sample", prev=token("sample", "scene-0103", 0)),
            f"`prev` of the record {SAMPLE} is .*another scene",
        ),
        (lambda t: first(t, "calibrated_sensor", sensor_token="x"), "sensor.json has no .*'x'"),
        (lambda t: t["sample"].append(t["sample"][0]), "two records with the token"),
        (
            lambda t: without(t, "sample_data", FILE),
            f"keyframe of CAM_FRONT of the sample {SAMPLE}",
        ),
        (
            lambda t: without(t, "sample_data", token("file", "scene-0061", "LIDAR_TOP", 6)),
            "keyframe of LIDAR_TOP of the sample",
        ),
        (lambda t: first(t, "calibrated_sensor", camera_intrinsic=[]), "matrix of 3 x 3"),
        (
            lambda t: first(t, "sample_annotation", size=[1, 0, 1]),
            f"1 boxes have a size that is not positive.* {ANNOTATION}",
        ),
        (lambda t: first(t, "sample_annotation", rotation=[0, 0, 0, 0]), f"first is {ANNOTATION}"),
        (lambda t: t.update(sample=[], sample_data=[], sample_annotation=[]), "has no keyframe"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_wrong_is_named(copy, edit, message):
    root = copy(edit)
    with pytest.raises(NuScenesError, match=message) as error:
        build(root)
    assert isinstance(error.value, UserError) and str(root) in str(error.value)


def test_a_good_copy_is_read(tiny_root):
    assert len(build(tiny_root).key_time) == 3


def test_tokens_may_be_any_texts(copy):
    def edit(tables):
        text = json.dumps(tables)
        tables.update(json.loads(text.replace(SAMPLE, "first ü").replace(FILE, "7")))

    assert build(copy(edit)).key_tokens[0] == "first ü"


def test_a_version_that_is_absent_is_named(tiny_root):
    with pytest.raises(NuScenesError, match="v1.0-trainval does not exist.*has v1.0-mini"):
        Tables(tiny_root, "v1.0-trainval")
    with pytest.raises(NuScenesError, match="has no tables"):
        Tables(tiny_root / "gone", "v1.0-trainval")


def test_problems_can_be_collected(copy):
    found = []
    tables = Tables(copy(lambda t: t["scene"][0].pop("name")), "v1.0-mini")
    assert [scene.name for scene in tables.read(Scene, found.append)] == [SCENES[1]]
    assert len(found) == 1 and "record 1" in found[0]


def test_splits_are_those_of_the_devkit(tiny_root):
    tables = Tables(tiny_root, "v1.0-mini")
    assert split_names(tables) == ["mini_train", "mini_val"]
    assert scenes_of(tables, "mini_train") == [SCENES[0]]
    assert scenes_of(tables, "mini_val") == [SCENES[1]]
    splits = official_splits()
    assert [len(splits[name]) for name in ("train", "val", "test")] == [700, 150, 150]
    with pytest.raises(NuScenesError, match="split train is of v1.0-trainval, and .*v1.0-mini is"):
        scenes_of(tables, "train")
    with pytest.raises(NuScenesError, match="no split cubes.*mini_train, mini_val"):
        scenes_of(tables, "cubes")
    with pytest.raises(NuScenesError, match="none of the 8 scenes of the split mini_train"):
        scenes_of(tables, "mini_train", ["scene-9999"])


def test_scenes_that_are_absent_are_logged(tiny_root, package_log):
    scenes_of(Tables(tiny_root, "v1.0-mini"), "mini_train")
    assert "7 of 8 scenes of the split mini_train are absent" in package_log.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ["scene-0061"], "b": [', "splits.json is not of the form"),
        ("[]", "splits.json is not of the form"),
        ('{"a": "scene-0061"}', "a is no list of names"),
        ('{"train": ["scene-0061"]}', "train is an official split"),
        ('{"a": []}', "split a of .* is empty"),
        ('{"a": ["scene-7"]}', "none of the 1 scenes of the split a, such as scene-7"),
    ],
)
def test_splits_of_ones_own_are_checked(copy, text, message):
    root = copy(version="v1.0-own")
    (root / "v1.0-own" / "splits.json").write_text(text)
    with pytest.raises(NuScenesError, match=message):
        scenes_of(Tables(root, "v1.0-own"), "a")


def test_splits_of_ones_own_need_no_devkit(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "nuscenes.utils.splits", None)
    root = copy(version="v1.0-own")
    (root / "v1.0-own" / "splits.json").write_text(json.dumps({"a": [SCENES[1]]}))
    assert scenes_of(Tables(root, "v1.0-own"), "a") == [SCENES[1]]
    with pytest.raises(NuScenesError, match=r"pip install 'groupdetr_d2\[nuscenes\]'"):
        official_splits()
