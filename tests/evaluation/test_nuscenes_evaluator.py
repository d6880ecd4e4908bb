"""The evaluation on nuScenes: conventions, the official metrics of the truth, and mishaps."""

import builtins
import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from groupdetr_d2.data.nuscenes.catalog import open_frames
from groupdetr_d2.data.nuscenes.geometry import YAW
from groupdetr_d2.data.nuscenes.names import CLASSES
from groupdetr_d2.errors import UserError
from groupdetr_d2.evaluation import nuscenes_evaluator
from groupdetr_d2.evaluation.evaluation_report import Evaluation
from groupdetr_d2.evaluation.nuscenes_evaluator import RESULTS, SUMMARY, NuScenesEvaluator
from groupdetr_d2.evaluation.nuscenes_results import (
    FrameBoxes,
    accepted,
    attribute_of,
    in_range,
    lidar_boxes,
    overlaps_of,
    read_nuscenes_results,
    records_of,
    results_beside,
)
from groupdetr_d2.layers.box3d_ops import encode_boxes
from groupdetr_d2.modeling.postprocessing import box3d_instances

pytest.importorskip("nuscenes", reason="nuscenes-devkit is an extra")

from groupdetr_d2.evaluation.nuscenes_devkit import tables_of, tokens_of_split
from tests.evaluation.nuscenes_copy import frames_of_tables, write_copy

NAME, VERSION, SPLIT = "nuscenes_evaluated", "v1.0-mini", "mini_val"
EXACT = ("mATE", "mASE", "mAOE", "mAVE", "mAAE")


def set_metadata(root, version=VERSION, split=SPLIT, **values):
    MetadataCatalog.pop(NAME, None)
    MetadataCatalog.get(NAME).set(
        nuscenes_root=str(root), nuscenes_version=version, nuscenes_split=split, **values
    )


def register(root, version=VERSION, split=SPLIT):
    set_metadata(root, version, split)
    return frames_of_tables(
        tables_of(str(root), version), tokens_of_split(str(root), version, split)
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("nuscenes")
    write_copy(root)
    return root


@pytest.fixture
def frames(copy):
    yield register(copy)
    MetadataCatalog.pop(NAME, None)


def truth_of(frame, dtype=torch.float64):
    """The true boxes as detections; a model's are single precision."""
    boxes = torch.tensor([a["box"] for a in frame["annotations"]], dtype=dtype).reshape(-1, 9)
    return Instances(
        (18, 32),
        pred_boxes3d=boxes,
        scores=torch.linspace(0.9, 0.5, len(boxes)),
        pred_classes=torch.tensor([a["category_id"] for a in frame["annotations"]]).long(),
    )


def evaluated(frames, change=lambda instances: instances, folder=None, dtype=torch.float64):
    evaluator = NuScenesEvaluator(NAME, folder)
    evaluator.reset()
    for frame in frames:
        evaluator.process([frame], [{"instances": change(truth_of(frame, dtype))}])
    return evaluator.evaluate()["nuscenes"]


def test_the_truth_is_perfect(frames, tmp_path, capfd, package_log):
    metrics = evaluated(frames, folder=str(tmp_path))
    assert metrics["NDS"] == pytest.approx(100) and metrics["mAP"] == pytest.approx(100)
    assert [metrics[name] for name in EXACT] == pytest.approx([0] * 5, abs=1e-6)
    assert [metrics[f"AP-{name}"] for name in CLASSES] == pytest.approx([100] * 10)
    assert capfd.readouterr().out == ""  # the devkit prints
    assert "construction_vehicle" in package_log.text and "NDS 100.00" in package_log.text
    written = json.loads((tmp_path / RESULTS).read_text())
    assert set(written["results"]) == {frame["sample_token"] for frame in frames}
    assert written["meta"]["use_camera"] and not written["meta"]["use_lidar"]
    assert json.loads((tmp_path / SUMMARY).read_text())["nd_score"] == pytest.approx(1)


def test_the_truth_is_perfect_through_code_and_decoding(frames, copy):
    """From our own index to codes, queries, detections and the devkit."""
    evaluator = NuScenesEvaluator(NAME)
    reach = torch.tensor([[-61.2, -61.2, -10.0], [61.2, 61.2, 10.0]], dtype=torch.float64)
    indexed = open_frames(copy, VERSION, SPLIT)
    assert [frame["sample_token"] for frame in indexed] == [x["sample_token"] for x in frames]
    for frame in indexed:
        boxes = torch.tensor([a["box"] for a in frame["annotations"]], dtype=torch.float64)
        labels = [a["category_id"] for a in frame["annotations"]]
        logits = torch.full((1, len(boxes), len(CLASSES)), -20.0)
        logits[0, range(len(boxes)), labels] = torch.linspace(3, 1, len(boxes))
        codes = encode_boxes(boxes)[None]
        (found,) = box3d_instances(logits, codes, [(18, 32)], len(boxes), reach)
        evaluator.process([frame], [{"instances": found}])
    metrics = evaluator.evaluate()["nuscenes"]
    assert metrics["NDS"] == pytest.approx(100) and metrics["mAP"] == pytest.approx(100)
    assert [metrics[name] for name in EXACT] == pytest.approx([0] * 5, abs=1e-6)


def test_a_pitching_vehicle_and_a_split_of_ones_own(tmp_path):
    """Single precision and angles lose little; the split is looked up in splits.json."""
    write_copy(tmp_path, "v1.0-own", splits={"mine": ["scene-0061"]}, tilt=0.03)
    frames = register(tmp_path, "v1.0-own", "mine")
    assert [frame["sample_token"] for frame in frames] == [f"scene-0061-{k}" for k in range(3)]
    metrics = evaluated(frames, dtype=torch.float32)
    assert metrics["NDS"] == pytest.approx(100, abs=0.1)
    assert [metrics[name] for name in EXACT] == pytest.approx([0] * 5, abs=0.004)


def test_a_leaning_box_keeps_its_place_and_its_full_rotation():
    """Ninety degrees about x: what points left in the lidar's frame points up in the world."""
    lidar2ego, ego2global = np.eye(4), np.eye(4)
    ego2global[:3, :3], ego2global[:3, 3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]], [10, 20, 30]
    box = np.array([[1.0, 2, 3, 1, 4, 2, np.pi / 2, 0, 5]])
    frame = FrameBoxes("a", box, np.ones(1), np.array([0]), lidar2ego, ego2global)
    (record,) = records_of(frame)
    np.testing.assert_allclose(record["translation"], [11, 17, 32])
    # about z by 90 degrees, and then about x by 90 degrees
    np.testing.assert_allclose(record["rotation"], [0.5, 0.5, -0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(record["velocity"], [0, 0], atol=1e-12)  # straight up
    assert record["size"] == [1, 4, 2]


def test_conventions_by_hand():
    """The lidar looks to the right of the vehicle, which drives north: a car ahead that goes west.

    In the lidar's frame, x is right and y forward: 20 m ahead, heading to the left, 3 m/s.
    """
    lidar2ego = np.array([[0, 1, 0, 1.0], [-1, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]])
    ego2global = np.array([[0, -1, 0, 100.0], [1, 0, 0, 50], [0, 0, 1, 0], [0, 0, 0, 1]])
    box = np.array([[0, 20, -1, 1.9, 4.5, 1.6, np.pi, -3, 0.0]])
    frame = FrameBoxes("a", box, np.array([0.7]), np.array([0]), lidar2ego, ego2global)
    (record,) = records_of(frame)
    np.testing.assert_allclose(record["translation"], [100, 71, 1])
    assert record["size"] == [1.9, 4.5, 1.6]  # width before length
    np.testing.assert_allclose(np.abs(record["rotation"]), [0, 0, 0, 1], atol=1e-9)  # west
    np.testing.assert_allclose(record["velocity"], [-3, 0], atol=1e-9)
    assert record["attribute_name"] == "vehicle.moving" and record["detection_score"] == 0.7
    columns = (np.array([record[key]]) for key in ("translation", "size", "rotation", "velocity"))
    back = lidar_boxes(*columns, lidar2global=frame.lidar2global)
    assert abs(back[0, YAW]) == pytest.approx(np.pi)
    np.testing.assert_allclose(np.delete(back, YAW, 1), np.delete(box, YAW, 1), atol=1e-9)


@pytest.mark.parametrize(
    "name, standing, moving",
    [
        ("car", "vehicle.parked", "vehicle.moving"),
        ("bus", "vehicle.stopped", "vehicle.moving"),
        ("bicycle", "cycle.without_rider", "cycle.with_rider"),
        ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("barrier", "", ""),
        ("traffic_cone", "", ""),
    ],
)
def test_attributes(name, standing, moving):
    assert (attribute_of(name, 0.2), attribute_of(name, 0.21)) == (standing, moving)


def test_ranges_are_around_the_vehicle():
    """The lidar is 2 m ahead of the vehicle's origin: 39 m before it are 41 from the vehicle."""
    lidar2ego = np.eye(4)
    lidar2ego[0, 3] = 2
    boxes = np.zeros((3, 9))
    boxes[:, 0] = 39
    classes = np.array([CLASSES.index(x) for x in ("car", "pedestrian", "traffic_cone")])
    assert in_range(boxes, classes, lidar2ego).tolist() == [True, False, False]


def test_what_is_accepted():
    boxes = np.ones((4, 9))
    boxes[1, 0], boxes[2, 7], boxes[3, 3] = np.nan, np.nan, 0
    frame = FrameBoxes("a", boxes, np.array([0.1, 0.9, 0, 0.5]), np.zeros(4, int), *[np.eye(4)] * 2)
    kept = accepted(frame)
    assert kept.scores[:2].tolist() == [0.5, 0.1] and 0 < kept.scores[2] < 1e-30
    assert kept.boxes[0, 3] > 0 and [r["velocity"] for r in records_of(kept)][2] == [0, 0]


def test_wrong_sizes_and_headings_are_seen(frames):
    """Figures of the facts: w and l swapped cost mASE, half a turn mAOE, neither costs mAP."""

    def swapped(instances):
        instances.pred_boxes3d = instances.pred_boxes3d[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]
        return instances

    def turned(instances):
        instances.pred_boxes3d[:, YAW] += np.pi
        return instances

    sizes, angles = evaluated(frames, swapped), evaluated(frames, turned)
    assert sizes["mAP"] == pytest.approx(100) and sizes["mASE"] > 0.4
    assert angles["mAP"] == pytest.approx(100)
    assert angles["mAOE"] == pytest.approx(np.pi * 8 / 9)  # barriers have no front


def test_no_detection_at_all(frames, tmp_path, package_log):
    (tmp_path / SUMMARY).write_text("of an earlier evaluation")
    metrics = evaluated(frames, lambda instances: instances[:0], str(tmp_path))
    assert metrics["NDS"] == metrics["mAP"] == metrics["AP-car"] == 0
    assert [metrics[name] for name in EXACT] == [1] * 5
    assert "nothing was found in mini_val" in package_log.text
    assert not (tmp_path / SUMMARY).exists()
    assert set(metrics) == set(evaluated(frames))


def test_a_keyframe_that_was_not_predicted(frames, package_log):
    metrics = evaluated(frames[:2])
    assert 50 < metrics["mAP"] < 75 and metrics["mATE"] == pytest.approx(0, abs=1e-6)
    assert "1 of 3 keyframes" in package_log.text and frames[2]["sample_token"] in package_log.text


def test_a_keyframe_of_another_split(frames, package_log):
    other = {**frames[0], "sample_token": "scene-0061-0"}
    assert evaluated([*frames, other])["NDS"] == pytest.approx(100)
    assert "are not of mini_val, such as scene-0061-0" in package_log.text


def test_more_boxes_than_the_benchmark_takes(frames, tmp_path):
    """Five hundred and more copies that are worse than each true box."""

    def crowded(instances):
        copies = Instances.cat([instances] * 60)
        copies.scores = torch.arange(len(copies), 0, -1) / 1000
        return copies

    metrics = evaluated(frames, crowded, str(tmp_path))
    assert metrics["mATE"] == pytest.approx(0, abs=1e-6) and metrics["mAP"] > 0
    records = json.loads((tmp_path / RESULTS).read_text())["results"][frames[0]["sample_token"]]
    scores = [record["detection_score"] for record in records]
    assert len(records) == 500 and scores == sorted(scores, reverse=True)
    assert max(scores) == pytest.approx(0.6)


def test_scores_of_zero_have_true_positives(frames):
    def worthless(instances):
        instances.scores = torch.zeros(len(instances))
        return instances

    metrics = evaluated(frames, worthless)
    assert metrics["NDS"] == pytest.approx(100)


def test_velocities_that_are_unknown(frames):
    def unknown(instances):
        instances.pred_boxes3d[:, 7:] = float("nan")
        return instances

    metrics = evaluated(frames, unknown)
    assert metrics["mAP"] == pytest.approx(100)
    assert metrics["mAVE"] == pytest.approx((6 + 4 + 5 + 1.2) / 8)  # of those that move


def test_broken_numbers_are_left_out(frames):
    def broken(instances):
        instances.pred_boxes3d[0] = float("inf")
        instances.scores[1] = float("nan")
        return instances

    assert 0 < evaluated(frames, broken)["mAP"] < 100


def test_classes_without_truth(tmp_path, package_log):
    write_copy(tmp_path, classes=("car", "pedestrian"))
    metrics = evaluated(register(tmp_path))
    assert metrics["mAP"] == pytest.approx(20) and metrics["AP-bus"] == 0
    assert metrics["NDS"] == pytest.approx(21.2, abs=0.1)


def test_a_split_without_truth(tmp_path, package_log):
    write_copy(tmp_path, classes=())
    (frame, *_) = register(tmp_path)
    found = Instances(
        (18, 32),
        pred_boxes3d=torch.ones(1, 9),
        scores=torch.ones(1),
        pred_classes=torch.zeros(1).long(),
    )
    assert evaluated([frame], lambda _: found)["NDS"] == 0
    assert "no objects of the ten classes" in package_log.text


def test_only_the_first_process_evaluates(frames, monkeypatch):
    monkeypatch.setattr(nuscenes_evaluator.comm, "is_main_process", lambda: False)
    assert NuScenesEvaluator(NAME).evaluate() == {}


def test_processes_bring_their_keyframes_together(frames, monkeypatch):
    other = NuScenesEvaluator(NAME)
    other.process(frames[1:], [{"instances": truth_of(frame)} for frame in frames[1:]])
    monkeypatch.setattr(nuscenes_evaluator.comm, "gather", lambda x, dst: [x, other.found])
    assert evaluated(frames[:1])["NDS"] == pytest.approx(100)


def test_without_the_devkit(frames, monkeypatch):
    for name in [x for x in sys.modules if x.partition(".")[0] == "nuscenes"]:
        monkeypatch.delitem(sys.modules, name)
    genuine = builtins.__import__

    def absent(name, *rest):
        if name.partition(".")[0] == "nuscenes":
            raise ImportError("No module named 'nuscenes'")
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'groupdetr_d2\[nuscenes\]'"):
        NuScenesEvaluator(NAME)


def test_tables_that_are_not_there(frames, tmp_path):
    set_metadata(tmp_path)
    with pytest.raises(UserError, match="no folder v1.0-mini"):
        NuScenesEvaluator(NAME)


def test_a_generated_set_is_made_when_it_is_needed(tmp_path):
    set_metadata(tmp_path, prepare=lambda: write_copy(tmp_path))
    assert NuScenesEvaluator(NAME).evaluate()["nuscenes"]["NDS"] == 0
    NuScenesEvaluator(NAME)  # a second time would fail


def test_tables_that_the_devkit_does_not_take(tmp_path):
    """Before anything is predicted where it is known before; the devkit's own words otherwise."""
    write_copy(tmp_path)
    (tmp_path / "maps" / "map.png").unlink()
    set_metadata(tmp_path)
    with pytest.raises(UserError, match=r"map.png is missing, the picture of map map\. Unpack"):
        NuScenesEvaluator(NAME)
    with pytest.raises(UserError, match="check-data --nuscenes"):
        tables_of(str(tmp_path), VERSION)


def test_a_box_of_two_attributes_is_no_traceback(tmp_path):
    """The devkit raises a bare Exception for it; check-data names the box."""
    write_copy(tmp_path)
    path = tmp_path / VERSION / "sample_annotation.json"
    records = json.loads(path.read_text())
    (moving, *_) = [x for x in records if x["attribute_tokens"] and "0103" in x["token"]]
    moving["attribute_tokens"] *= 2
    path.write_text(json.dumps(records))
    frames = register(tmp_path)
    with pytest.raises(UserError, match="attribute.*check-data --nuscenes"):
        evaluated(frames)


def test_overlap_is_a_half_at_two_metres():
    centres = np.array([[0.0, 0, 0], [0, 2, 9], [0, 3, 0], [0, 9, 0]])
    overlaps = overlaps_of(centres, np.zeros((1, 3)))
    np.testing.assert_allclose(overlaps[:, 0], [1, 0.5, 0.25, 0])
    assert overlaps_of(np.zeros((0, 3)), centres).shape == (0, 4)


def test_the_report_reads_what_the_evaluator_wrote(frames, tmp_path):
    """Each keyframe lacks its first object, and finds it beyond two metres."""

    def worse(instances):
        instances.pred_boxes3d[0, 0] += 2.5
        return instances

    evaluated(frames, worse, str(tmp_path))
    images = results_beside(frames, tmp_path / RESULTS)
    assert [len(image.true_classes) for image in images] == [10] * 3
    evaluation = Evaluation.of(images, CLASSES)
    missed = frames[0]["annotations"][0]["category_id"]
    assert evaluation.by_class[missed].recall.max() == 0
    others = [c for i, c in enumerate(evaluation.by_class) if i != missed]
    assert all(curves.average_precision == pytest.approx(1) for curves in others)
    truth, found = images[0].truth(), images[0].found()
    assert truth.gt_boxes3d.dtype == found.pred_boxes3d.dtype == torch.float32
    np.testing.assert_allclose(found.pred_boxes3d[1:], truth.gt_boxes3d[1:], atol=1e-4)
    assert images[0].scores.tolist() == sorted(images[0].scores, reverse=True)


def test_objects_beyond_their_range_are_not_missed(frames, tmp_path):
    evaluated(frames, folder=str(tmp_path))
    frame = {**frames[0], "annotations": [dict(a) for a in frames[0]["annotations"]]}
    far = [60.0, *frame["annotations"][0]["box"][1:]]
    frame["annotations"][0]["box"] = far
    (image,) = results_beside([frame], tmp_path / RESULTS)
    assert len(image.true_classes) == 9 and image.overlaps.shape == (10, 9)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1,", "not a result file"),
        ('{"results": {}}', "lacks keyframe scene-0103-0"),
        ('{"results": {"scene-0103-0": [{}]}}', "not a result file"),
    ],
)
def test_files_of_something_else(frames, tmp_path, content, message):
    (tmp_path / RESULTS).write_text(content)
    with pytest.raises(UserError, match=message):
        results_beside(frames, tmp_path / RESULTS)


def test_results_are_read_beside_a_registered_set(frames, tmp_path, monkeypatch):
    catalog = pytest.importorskip("groupdetr_d2.data.nuscenes.catalog")
    monkeypatch.setattr(catalog, "frames_of", {NAME: frames}.__getitem__)
    evaluated(frames, folder=str(tmp_path))
    images = read_nuscenes_results(NAME, tmp_path / RESULTS)
    assert [image.name for image in images] == [frame["file_name"] for frame in frames]
    assert all(image.overlaps.max(1).min() > 0.999 for image in images)
