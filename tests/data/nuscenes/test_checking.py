"""check-data finds what is planted in a copy of nuScenes, and nothing where nothing is wrong."""

import re

import pytest
from PIL import Image

from groupdetr_d2.data.nuscenes.checking import check_nuscenes
from tests.data.nuscenes.tiny_copy import ATTRIBUTES, SIZE, token, write_copy


def test_a_good_copy_has_no_findings(tiny_root):
    found = check_nuscenes(tiny_root, "v1.0-mini")
    assert found.findings == [] and not found.has_errors
    numbers = found.numbers
    assert (numbers["scenes"], numbers["keyframes"], numbers["camera images"]) == (2, 6, 156)
    assert numbers["boxes"] == 90 and numbers["boxes of other categories"] == 12
    assert numbers["boxes by class"]["pedestrian"] == 24 and numbers["boxes by class"]["bus"] == 4
    assert numbers["scenes by split"] == {"mini_train": 1, "mini_val": 1}
    assert numbers["images opened"] == 156 and numbers["boxes of unknown velocity"] == 2
    assert numbers["sizes by class, metres"]["car"].startswith("width ")


def box(tables, place=0, **changes):
    tables["sample_annotation"][place].update(changes)


def row(tables, table, **changes):
    tables[table][0].update(changes)


def drop(tables, name):
    tables["sample_data"] = [x for x in tables["sample_data"] if x["token"] != name]


def far(tables):
    x, y, z = tables["sample_annotation"][0]["translation"]
    box(tables, translation=[x + 2000, y, z])


NAN = float("nan")
PLANTED = {
    "missing table": (lambda t: t.update(ego_pose=None), "table ego_pose is missing"),
    "no json": (lambda t: t.update(sample="[{"), "sample.json is no list"),
    "float points": (lambda t: box(t, num_lidar_pts=3.0), "num_lidar_pts"),
    "no field": (lambda t: t["scene"][1].pop("name"), "record 2 .*missing required field `name`"),
    "nan": (lambda t: box(t, size=[1, NAN, 1]), "NaN is no JSON"),
    "nan size": (lambda t: box(t, size=[1, NAN, 1]), "size that is not positive"),
    "infinite centre": (lambda t: box(t, translation=[NAN, 1, 1]), "centre that is not finite"),
    "size": (lambda t: box(t, size=[1, -2, 1]), "boxes with a size that is not positive: "),
    "quaternion": (lambda t: box(t, rotation=[0, 0, 0, 0]), "boxes with a quaternion that is none"),
    "points": (lambda t: box(t, num_radar_pts=-1), "negative number of points"),
    "attributes": (
        lambda t: box(t, attribute_tokens=[token("attribute", x) for x in ATTRIBUTES[:2]]),
        "more than one attribute",
    ),
    "attribute": (lambda t: box(t, attribute_tokens=["x"]), "attribute 'x' of "),
    "double": (lambda t: t["sample_annotation"].append(t["sample_annotation"][0]), "two records"),
    "pose": (lambda t: row(t, "ego_pose", rotation=[0, 0, 0, 0]), "ego_pose.json: a translation"),
    "sensor": (lambda t: row(t, "calibrated_sensor", camera_intrinsic=[]), "matrix of 3 x 3"),
    "dangling pose": (lambda t: row(t, "sample_data", ego_pose_token="x"), "ego_pose.json lacks"),
    "dangling scene": (lambda t: row(t, "sample", scene_token="x"), "scene.json lacks: .*'x' of"),
    "dangling object": (lambda t: box(t, instance_token="x"), "instance.json lacks"),
    "dangling sensor": (
        lambda t: row(t, "sample_data", calibrated_sensor_token="x"),
        "calibrated_sensor.json lacks",
    ),
    "lost link": (lambda t: box(t, next="x"), "sample_annotation.json: broken links.*'x'"),
    "wrong link": (
        lambda t: row(t, "sample", next=t["sample"][2]["token"]),
        "sample.json: broken links.*whose prev is",
    ),
    "link back": (lambda t: row(t, "sample", timestamp=2 * 10**15), "time is on the other side"),
    "lost image": (
        lambda t: drop(t, token("file", "scene-0061", "CAM_BACK", 6)),
        f"without a keyframe of CAM_BACK: {token('sample', 'scene-0061', 1)}",
    ),
    "lost lidar": (
        lambda t: drop(t, token("file", "scene-0061", "LIDAR_TOP", 0)),
        f"without a keyframe of LIDAR_TOP: {token('sample', 'scene-0061', 0)}",
    ),
    "no split": (lambda t: [x.update(name="a") for x in t["scene"]], "none of the 8 scenes"),
    "no maps": (lambda t: t.update(map=None), "not evaluate: the table map is missing"),
    "empty maps": (lambda t: t.update(map=[]), "not evaluate: .*map.json has no map"),
    "no logs": (lambda t: t.update(log=None), "the table log is missing"),
    "no visibility": (lambda t: t.update(visibility=None), "the table visibility is missing"),
    "log without map": (lambda t: row(t, "map", log_tokens=[]), "log .* has no map in .*map.json"),
    "map of the teaser": (lambda t: t["map"][0].pop("log_tokens"), "map.json, record 1 .*`log_tok"),
    "picture of a map": (
        lambda t: row(t, "map", filename="maps/gone.png"),
        "gone.png is missing, the picture of map",
    ),
    "size in the table": (lambda t: row(t, "sample_data", width=99), r"is 32 x 18, not 99 x 18"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_an_error(copy, name):
    edit, message = PLANTED[name]
    found = check_nuscenes(copy(edit), "v1.0-mini")
    texts = "\n".join(str(x) for x in found.findings if x.is_error)
    assert found.has_errors and re.search(message, texts), texts


WARNED = {
    "fast": (far, "boxes faster than 100 m/s"),
    "category": (lambda t: row(t, "category", name="vehicle.boat"), "vehicle.boat"),
    "class": (
        lambda t: [x.update(name="animal") for x in t["category"] if x["name"] == "vehicle.car"],
        "classes without objects, whose AP is 0 and lowers NDS: car",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_is_odd_is_a_warning(copy, name):
    edit, message = WARNED[name]
    found = check_nuscenes(copy(edit), "v1.0-mini")
    assert not found.has_errors and message in "\n".join(map(str, found.findings))


def test_images_are_looked_at(tmp_path):
    write_copy(tmp_path)
    back = sorted((tmp_path / "samples" / "CAM_BACK").iterdir())
    back[0].unlink()
    back[1].write_bytes(b"")
    back[2].write_bytes(back[2].read_bytes()[:200])
    Image.new("RGB", (SIZE[0], 20)).save(back[3])
    sweep = sorted((tmp_path / "sweeps" / "CAM_FRONT").iterdir())[0]
    sweep.unlink()
    found = check_nuscenes(tmp_path, "v1.0-mini")
    texts = [str(x) for x in found.findings]
    assert [x.is_error for x in found.findings] == [True] * 4 + [False]
    assert "images of keyframes missing" in texts[0] and back[0].name in texts[0]
    assert "zero bytes" in texts[1] and back[1].name in texts[1]
    assert "cannot be read" in texts[2] and back[2].name in texts[2]
    assert "is 32 x 20, not 32 x 18" in texts[3]
    assert "which PETRv2 alone reads" in texts[4] and sweep.name in texts[4]
    unopened = check_nuscenes(tmp_path, "v1.0-mini", sampled=0)
    assert len(unopened.findings) == 3


def test_radars_are_passed_over(copy):
    """They have no part in the benchmark; the copy's own are not read."""

    def edit(tables):
        radar = {"token": "radar", "channel": "RADAR_FRONT", "modality": "radar"}
        sensor = {**tables["calibrated_sensor"][0], "token": "r", "sensor_token": "radar"}
        file = {**tables["sample_data"][0], "token": "f", "calibrated_sensor_token": "r"}
        tables["sensor"].append(radar)
        tables["calibrated_sensor"].append({**sensor, "camera_intrinsic": []})
        tables["sample_data"].append({**file, "filename": "gone.pcd", "prev": "x"})

    assert check_nuscenes(copy(edit), "v1.0-mini").findings == []
