"""Using a trained model of several cameras: keyframes by name, in pictures, videos and tables."""

import csv
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2 import Predictor
from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.checkpoint.run_info import RunInfo
from groupdetr_d2.commands import run as main
from groupdetr_d2.config import build_config
from groupdetr_d2.data.nuscenes.catalog import frames_of
from groupdetr_d2.data.nuscenes.cube_spec import CubesSpec
from groupdetr_d2.data.nuscenes.cubes import register_cubes, register_cubes_of
from groupdetr_d2.data.nuscenes.geometry import inverse, moved_boxes
from groupdetr_d2.data.nuscenes.names import CLASSES
from groupdetr_d2.engine.report import next_commands
from groupdetr_d2.engine.setup import settle_config
from groupdetr_d2.errors import UserError
from groupdetr_d2.evaluation.nuscenes_results import results_beside
from groupdetr_d2.inference import frame_prediction
from groupdetr_d2.inference.frame_selection import FrameFinder, by_scene
from tests.conftest import ROOT, SHRINK, randomize_heads
from tests.data.nuscenes import tiny_copy
from tests.inference import test_predict

CUBES = [
    *("DATASETS.CUBES.TRAIN_SCENES", 1, "DATASETS.CUBES.VAL_SCENES", 2),
    *("DATASETS.CUBES.KEYFRAMES", 3, "DATASETS.CUBES.WIDTH", 64, "DATASETS.CUBES.HEIGHT", 36),
]
SCENES = ["cubes-0001", "cubes-0002"]  # of cubes_val


def cubes_config(*opts):
    config = str(ROOT / "configs/quick_start/group_petr_cubes.yaml")
    small = ["INPUT.VIEWS.SIZE", [36, 64], "MODEL.DETR.NUM_GROUPS", 3]
    return build_config(config, [*SHRINK, *small, *CUBES, *opts])


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A small generated copy, which is also what the checkpoint's test set is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        register_cubes_of(cubes_config())
        yield SimpleNamespace(frames=frames_of("cubes_val"), root=frames_of("cubes_val").root)
    register_cubes(CubesSpec())


@pytest.fixture(scope="module")
def weights(copy, tmp_path_factory):
    cfg, folder = cubes_config(), tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = build_model(cfg)
    randomize_heads(model)
    run = RunInfo(cfg)
    run.threshold = 0.01
    GroupCheckpointer(model, str(folder), run=run).save("model")
    return folder / "model.pth"


def predict(weights, out, *arguments):
    return test_predict.predict(weights, out, "--threshold", 0, *arguments)


def table_of(out):
    return json.loads((out / "detections.json").read_text())["results"]


def test_the_predictor_takes_keyframes(weights, copy):
    predictor = Predictor(weights, threshold=0.0)
    found = predictor(copy.frames[0])
    assert predictor.names == list(CLASSES) and len(found.instances) > 3
    first = found.records()[0]
    assert set(first) == {"class", "score", "box"} and len(first["box"]) == 9
    np.testing.assert_allclose(first["box"], found.instances.pred_boxes3d[0], atol=1e-4)
    assert found.about["sample_token"] == copy.frames.tokens[0]
    two = predictor(copy.frames[:2])
    torch.testing.assert_close(two[0].instances.pred_boxes3d, found.instances.pred_boxes3d)
    assert two[1].records() != found.records()
    assert len(predictor(copy.frames[0], threshold=1.1).instances) == 0


def test_any_group_can_detect_in_keyframes(weights, copy):
    predictor = Predictor(weights, threshold=0.0)
    scores = [predictor(copy.frames[0], group=k).instances.scores for k in (None, 0, 1)]
    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    with pytest.raises(UserError, match="group 3 does not exist: the model has 0 .. 2"):
        predictor(copy.frames[0], group=3)


def test_boxes_in_other_frames_of_reference(weights, copy):
    record = copy.frames[1]
    found = Predictor(weights, threshold=0.0)(record)
    lidar, ego, everywhere = (found.boxes_in(name) for name in ("lidar", "ego", "global"))
    np.testing.assert_array_equal(lidar, found.instances.pred_boxes3d.double())
    np.testing.assert_allclose(moved_boxes(ego, record["ego2global"]), everywhere)
    back = moved_boxes(everywhere, inverse(record["ego2global"] @ record["lidar2ego"]))
    np.testing.assert_allclose(back[:, :3], lidar[:, :3], atol=1e-6)
    assert np.abs(everywhere[:, :2] - lidar[:, :2]).min() > 10
    with pytest.raises(UserError, match="'camera' is no frame of reference; it can be lidar, ego"):
        found.boxes_in("camera")


def test_photographs_and_keyframes_are_not_confused(weights, copy, tmp_path):
    several, single = Predictor(weights), Predictor(test_predict.make_checkpoint(tmp_path))
    for photograph in (test_predict.picture(), copy.frames[0]["file_name"]):
        with pytest.raises(UserError, match="is no keyframe: GroupPETR sees .* several cameras"):
            several(photograph)
    with pytest.raises(UserError, match="dict is no image.*Keyframes are for models of several"):
        single(copy.frames[0])
    with pytest.raises(UserError, match="only models of several cameras find boxes in space"):
        single(test_predict.picture()).boxes_in("ego")


def test_a_scene_becomes_pictures_a_video_and_tables(weights, copy, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(weights, out, SCENES[1]) == 0
    tokens = copy.frames.tokens[3:]
    pictures = [f"{SCENES[1]}_{i:02d}_{token}.jpg" for i, token in enumerate(tokens)]
    tables = ["detections.json", "detections.csv", "nuscenes_results.json"]
    assert {p.name for p in out.iterdir()} == {*pictures, *tables, f"{SCENES[1]}.mp4"}
    results = table_of(out)
    assert [r["sample_token"] for r in results] == tokens
    assert np.all(np.diff([r["timestamp"] for r in results]) > 0)
    expected = Predictor(weights, threshold=0.0)(copy.frames[4]).records()
    assert results[1]["objects"] == expected
    rows = list(csv.DictReader((out / "detections.csv").open()))
    assert len(rows) == sum(len(r["objects"]) for r in results)
    assert [rows[0][key] for key in ("scene", "sample_token")] == [SCENES[1], tokens[0]]
    assert float(rows[0]["yaw"]) == results[0]["objects"][0]["box"][6]
    video = cv2.VideoCapture(str(out / f"{SCENES[1]}.mp4"))
    frames = [frame for _, frame in iter(video.read, (False, None))]
    drawn = [cv2.imread(str(out / name)) for name in pictures]
    assert len(frames) == 3 and video.get(cv2.CAP_PROP_FPS) == 2
    for frame, picture in zip(frames, drawn, strict=True):
        assert frame.shape == picture.shape
        assert np.abs(frame.astype(int) - picture).mean() < 12
    text = capsys.readouterr().out
    assert "3 of 3 keyframes" in text and text.endswith("results.json, pictures, videos\n")


def test_the_result_file_is_that_of_the_devkit(weights, copy, tmp_path):
    assert predict(weights, tmp_path, "cubes_val", "--no-pictures") == 0
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".csv"}
    content = json.loads((tmp_path / "nuscenes_results.json").read_text())
    assert list(content["results"]) == copy.frames.tokens and content["meta"]["use_camera"]
    read = results_beside(copy.frames, tmp_path / "nuscenes_results.json")
    found = Predictor(weights, threshold=0.0)(copy.frames[2])
    own = read[2].found()
    assert 0 < len(own) <= len(found.instances)
    best = found.instances.scores.tolist().index(pytest.approx(own.scores[0].item()))
    expected = found.instances.pred_boxes3d[best]
    torch.testing.assert_close(own.pred_boxes3d[0][:6], expected[:6], atol=1e-3, rtol=0)


def test_keyframes_have_several_names(weights, copy, tmp_path):
    token = copy.frames.tokens[4]
    scenes = FrameFinder(cubes_config()).find([token, copy.root, SCENES[1], token])
    by_name = {scene.name: scene.frames.tokens for scene in scenes}
    tokens = [frames_of("cubes_train").tokens, copy.frames.tokens[:3], copy.frames.tokens[3:]]
    assert list(by_name)[0] == SCENES[1] and sum(map(len, by_name.values())) == 9
    assert [by_name[name] for name in ("cubes-0000", *SCENES)] == tokens
    assert predict(weights, tmp_path, token) == 0
    assert {p.name for p in tmp_path.glob("*.jpg")} == {f"{SCENES[1]}_01_{token}.jpg"}
    assert not list(tmp_path.glob("*.mp4"))


def test_truth_is_drawn_unless_it_is_not_wanted(weights, copy, tmp_path):
    pictures = {}
    for name, more in {"with": [], "without": ["--no-truth"]}.items():
        folder = tmp_path / name
        arguments = ["--weights", weights, "--out", folder, "--threshold", 1.1, SCENES[0], *more]
        assert main(["predict", *map(str, arguments)]) == 0
        pictures[name] = cv2.imread(str(next(folder.glob("*.jpg")))).astype(int)
    record = copy.frames[0]
    white = {name: (picture.min(2) > 200).sum() for name, picture in pictures.items()}
    assert record["annotations"] and white["with"] > white["without"] + 200


def test_a_copy_without_annotations_has_no_truth(weights, tmp_path):
    tiny_copy.write_copy(
        tmp_path / "a", version="v1.0-own", edit=lambda tables: tables["sample_annotation"].clear()
    )
    (scene, _) = FrameFinder(cubes_config()).find([str(tmp_path / "a")])
    assert len(scene.frames) == 3 and not scene.has_truth
    assert predict(weights, tmp_path / "out", tmp_path / "a", "--no-pictures") == 0


def test_an_interrupted_scene_keeps_what_is_done(weights, copy, tmp_path, monkeypatch, capsys):
    detect = Predictor.__call__

    def stop(self, record, **named):
        if record["sample_token"] == copy.frames.tokens[2]:
            raise KeyboardInterrupt
        return detect(self, record, **named)

    monkeypatch.setattr(Predictor, "__call__", stop)
    assert predict(weights, tmp_path, SCENES[0]) == 130
    assert [r["sample_token"] for r in table_of(tmp_path)] == copy.frames.tokens[:2]
    assert cv2.VideoCapture(str(tmp_path / f"{SCENES[0]}.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    text = capsys.readouterr()
    assert "what is done is written" in text.err and "2 of 3 keyframes" in text.out


def test_models_that_look_back_see_earlier_frames(copy, tmp_path):
    cfg = cubes_config("MODEL.DETR.VARIANT", "petrv2", "INPUT.VIEWS.EARLIER", [3, 27])
    GroupCheckpointer(build_model(cfg), str(tmp_path), run=RunInfo(cfg)).save("model")
    found = Predictor(tmp_path / "model.pth", threshold=0.0)(copy.frames[2])
    assert found.about["interval"] > 0.4 and len(found.instances) > 0
    assert len(found.image.photographs) == 6


def test_another_copy_is_looked_into(weights, tmp_path):
    root = tmp_path / "nuscenes"
    pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    tiny_copy.write_copy(root)
    arguments = ["--no-pictures", "--nuscenes", root]
    assert predict(weights, tmp_path / "out", *arguments, "scene-0103") == 0
    assert [r["scene"] for r in table_of(tmp_path / "out")] == ["scene-0103"] * 3
    assert predict(weights, tmp_path / "out", *arguments, "nuscenes_mini_train") == 0
    assert [r["scene"] for r in table_of(tmp_path / "out")] == ["scene-0061"] * 3
    with pytest.raises(SystemExit, match="v1.0-trainval does not exist"):
        predict(weights, tmp_path / "out", *arguments, "scene-0103", "--version", "v1.0-trainval")


def test_a_copy_without_splits_is_one(tmp_path):
    tiny_copy.write_copy(tmp_path, version="v1.0-own")
    scenes = FrameFinder(cubes_config()).find([str(tmp_path)])
    assert [(scene.name, scene.numbers) for scene in scenes] == [
        (name, [0, 1, 2]) for name in tiny_copy.SCENES
    ]


def test_scenes_of_one_name_have_videos_of_their_own(copy, tmp_path):
    scenes = by_scene([copy.frames[:2], copy.frames[1:3]])
    assert len(scenes) == 1 and scenes[0].numbers == [0, 1, 2] and scenes[0].has_truth
    paths = frame_prediction.video_paths([*scenes, *scenes], tmp_path)
    assert len(set(paths)) == 2 and paths[0] == tmp_path / f"{SCENES[0]}.mp4"


def test_unknown_names_are_said_with_similar_ones(weights, copy, tmp_path):
    with pytest.raises(SystemExit) as end:
        predict(weights, tmp_path, "cubes-001")
    text = str(end.value)
    assert "cubes-001 is no folder" in text and SCENES[0] in text and "--nuscenes ROOT" in text
    token = copy.frames.tokens[0]
    with pytest.raises(SystemExit, match=f"2 scenes and 6 sample tokens of cubes_val.*{token}"):
        predict(weights, tmp_path, token[:-2])
    with pytest.raises(SystemExit, match="has the tables of no version"):
        predict(weights, tmp_path, tmp_path)
    with pytest.raises(SystemExit, match="names no test set to look into: give --nuscenes ROOT"):
        predict(weights, tmp_path, "nothing", "DATASETS.TEST", "()")
    with pytest.raises(SystemExit, match="jpg is a file, and the model sees .* several cameras"):
        predict(weights, tmp_path, copy.frames[0]["file_name"])
    with pytest.raises(SystemExit, match="coco_2017_val is none of nuScenes"):
        predict(weights, tmp_path, "coco_2017_val")


def test_a_lost_photograph_costs_its_keyframe_alone(weights, tmp_path, capsys):
    root = tmp_path / "nuscenes"
    tiny_copy.write_copy(root, version="v1.0-own")
    lost = sorted((root / "samples/CAM_BACK").iterdir())[0]
    lost.unlink()
    assert predict(weights, tmp_path / "out", root) == 1
    text = capsys.readouterr()
    assert lost.name in text.err and "5 of 6 keyframes" in text.out
    assert len(table_of(tmp_path / "out")) == 5
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 5


def test_options_of_the_other_kind_are_refused(weights, tmp_path):
    (tmp_path / "coco.json").write_text('{"images": [], "categories": []}')
    with pytest.raises(SystemExit, match="--polygons: the model of .* finds boxes in space"):
        predict(weights, tmp_path, SCENES[0], "--polygons")
    with pytest.raises(SystemExit, match="--coco-json: .*nuscenes_results.json is written"):
        predict(weights, tmp_path, SCENES[0], "--coco-json", tmp_path / "coco.json")
    single = test_predict.make_checkpoint(tmp_path)
    for option in (["--nuscenes", tmp_path], ["--version", "v1.0-mini"], ["--no-truth"]):
        with pytest.raises(SystemExit, match=f"{option[0]}: .* sees single images, no keyframes"):
            predict(single, tmp_path, tmp_path, *option)


def test_serve_and_export_say_that_there_is_none(weights, tmp_path):
    with pytest.raises(SystemExit, match="serve takes single images.*use predict --weights"):
        main(["serve", "--weights", str(weights)])
    with pytest.raises(SystemExit, match="GroupPETR sees several cameras .* has no export"):
        main(["export", "--weights", str(weights), "--out", str(tmp_path / "model.onnx")])
    with pytest.raises(UserError, match="GroupPETR has no test-time augmentation"):
        Predictor(weights, opts=["TEST.AUG.ENABLED", True])
    with pytest.raises(UserError, match="GroupPETR has no test-time augmentation"):
        settle_config(cubes_config("TEST.AUG.ENABLED", True))


def test_the_command_of_a_run_works(weights, copy, tmp_path):
    cfg = cubes_config("OUTPUT_DIR", str(weights.parent), "MODEL.WEIGHTS", str(weights))
    (line,) = (x for x in next_commands(cfg).splitlines() if x.startswith("  predict:"))
    words = line.partition("groupdetr_d2 predict ")[2].split()
    assert words[-1] == copy.frames.tokens[0]
    assert main(["predict", *words, "--no-pictures"]) == 0
    assert [r["sample_token"] for r in table_of(weights.parent / "seen")] == [words[-1]]


def test_check_data_draws_keyframes(copy, tmp_path, capsys):
    assert main(["check-data", "--nuscenes", copy.root, "--out", str(tmp_path)]) == 0
    assert f"pictures: {tmp_path}/v1.0-cubes_sheet.jpg" in capsys.readouterr().out
    drawn = cv2.imread(str(tmp_path / "v1.0-cubes_sheet.jpg"))
    height, width = drawn.shape[:2]
    assert width == 1400 and height >= 3 * 400  # of three keyframes
    assert drawn.std() > 20


@pytest.mark.parametrize("name", ["queries", "duplicates", "attention"])
def test_analyses_of_single_images_refuse(weights, tmp_path, name):
    image = ["--image", "x.jpg"] if name == "attention" else []
    with pytest.raises(SystemExit, match="the model sees keyframes; analyze groups"):
        main(["analyze", name, "--weights", str(weights), *image, "--out", str(tmp_path)])
