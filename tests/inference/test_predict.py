"""Using a trained model: images, folders, patterns, videos, groups, augmentation, small files."""

import csv
import json
import re
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from groupdetr_d2 import Predictor
from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.checkpoint.run_info import RunInfo
from groupdetr_d2.checkpoint.stripping import stripped_note
from groupdetr_d2.commands import run as main
from groupdetr_d2.config.upgrade import upgrade
from groupdetr_d2.data.resize import ResizeShortestSide
from groupdetr_d2.errors import UserError
from groupdetr_d2.inference.augmented import AugmentedModel
from groupdetr_d2.inference.views import build_resizes
from groupdetr_d2.tasks.boxes import BOXES
from tests.conftest import randomize_heads, small_config

CONFIGS = {
    "learned": "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml",
    "two-stage": "configs/DINO/dino_4scale_R_50_12ep.yaml",
}
SMALL = ["MODEL.DETR.NUM_CLASSES", 2, "INPUT.MIN_SIZE_TEST", 48, "DATASETS.TRAIN", ()]


def make_checkpoint(tmp_path, config="learned", num_groups=3, *opts, **more):
    from detectron2.modeling import build_model

    cfg = small_config(CONFIGS[config], num_groups, *SMALL, "DATASETS.TEST", (), *opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    randomize_heads(model)
    run = RunInfo(cfg)
    run.classes, run.threshold = ["cat", "dog"], more.get("threshold")
    GroupCheckpointer(model, str(tmp_path), run=run, trainer=Optimizer()).save("model")
    return tmp_path / "model.pth"


class Optimizer:
    """As large as a trainer's state is."""

    def state_dict(self):
        return {"averages": torch.zeros(2, 200_000)}


def picture(seed=0, size=(60, 90)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(["a.png", "b.jpg", "c.webp"]):
        cv2.imwrite(str(folder / name), picture(i))
    (folder / "notes.txt").write_text("none")
    return folder


def predict(weights, out, *arguments):
    return main(["predict", "--weights", str(weights), "--out", str(out), *map(str, arguments)])


def test_the_threshold_travels_in_the_checkpoint(tmp_path):
    assert Predictor(make_checkpoint(tmp_path)).threshold == 0.5
    path = make_checkpoint(tmp_path, threshold=0.25)
    assert Predictor(path).threshold == 0.25 and Predictor(path, threshold=0.7).threshold == 0.7
    found = Predictor(path)(picture(), threshold=0.0)
    assert len(found.instances) == 12 and found.names == ["cat", "dog"]
    assert len(Predictor(path)(picture(), threshold=1.1).instances) == 0


def test_folders_and_patterns_become_pictures_json_and_csv(tmp_path, images, capsys):
    weights, out = make_checkpoint(tmp_path), tmp_path / "out"
    assert predict(weights, out, images, images / "*.png", "--threshold", 0) == 0
    assert {p.name for p in out.iterdir()} == {
        *("a.png", "b.jpg", "c.webp.png", "detections.json", "detections.csv")
    }
    content = json.loads((out / "detections.json").read_text())
    assert [r["file"].split("/")[-1] for r in content["results"]] == [
        *("a.png", "b.jpg", "c.webp", "a.png")
    ]
    rows = list(csv.DictReader((out / "detections.csv").open()))
    assert len(rows) == 4 * 12 and {row["class"] for row in rows} <= {"cat", "dog"}
    first, expected = content["results"][0]["objects"], Predictor(weights, threshold=0.0)
    found = expected(images / "a.png").instances
    assert [x["score"] for x in first] == pytest.approx(found.scores.tolist())
    np.testing.assert_allclose([x["box"] for x in first], found.pred_boxes.tensor, atol=0.01)
    printed = capsys.readouterr().out.splitlines()
    assert "4 of 4 files, 48 objects with a score of at least 0.00, 0." in printed[0]
    counts = Counter(row["class"] for row in rows)
    assert printed[1:3] == [f"  {name}: {count}" for name, count in counts.most_common()]
    assert printed[3] == f"{out} holds detections.json, detections.csv and the pictures"
    assert len(printed) == 4


def test_objects_are_printed_if_they_are_asked_for(tmp_path, images, capsys):
    weights, out = make_checkpoint(tmp_path), tmp_path / "out"
    assert predict(weights, out, images / "a.png", "--threshold", 0, "--verbose") == 0
    first, *objects = capsys.readouterr().out.splitlines()[:13]
    assert first == f"{images}/a.png: 12 objects"
    assert all(re.match(r"  (cat|dog) 0\.\d{3} \[(\S+ ){3}\S+\]$", line) for line in objects)


def test_files_of_one_name_do_not_overwrite_each_other_or_themselves(tmp_path, images):
    other = tmp_path / "more"
    other.mkdir()
    cv2.imwrite(str(other / "a.png"), picture(9))
    weights, out = make_checkpoint(tmp_path), tmp_path / "out"
    assert predict(weights, out, images / "a.png", other, "--threshold", 1) == 0
    first, second = (cv2.imread(str(out / name)) for name in ("a.png", "more_a.png"))
    assert (first == picture(0)).all() and (second == picture(9)).all()
    with pytest.raises(SystemExit, match="overwritten by its own result"):
        predict(weights, images, images / "a.png")
    assert (cv2.imread(str(images / "a.png")) == picture(0)).all()


def test_what_cannot_be_read_is_named_and_the_rest_is_done(tmp_path, images, capsys):
    (images / "broken.png").write_bytes(b"no picture")
    assert predict(make_checkpoint(tmp_path), tmp_path / "out", images, "--no-pictures") == 1
    output = capsys.readouterr()
    assert "broken.png cannot be read" in output.err and "3 of 4 files" in output.out
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".csv"}
    with pytest.raises(SystemExit, match="nothing.* is no file, and there are no images"):
        predict(tmp_path / "model.pth", tmp_path / "out", tmp_path / "nothing*")


def test_results_in_cocos_format_have_the_ids_of_the_annotations(tmp_path, images):
    content = {
        "images": [{"id": 40 + i, "file_name": n} for i, n in enumerate(["a.png", "b.jpg"])],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    weights, out = make_checkpoint(tmp_path), tmp_path / "out"
    arguments = ["--threshold", 0, "--coco-json", tmp_path / "coco.json"]
    assert predict(weights, out, images / "a.png", images / "b.jpg", *arguments) == 0
    records = json.loads((out / "coco_results.json").read_text())
    assert {r["image_id"] for r in records} == {40, 41}
    objects = json.loads((out / "detections.json").read_text())["results"][0]["objects"]
    for record, x in zip(records, objects, strict=False):
        assert record["category_id"] == {"dog": 7, "cat": 3}[x["class"]]
        x1, y1, x2, y2 = x["box"]
        assert record["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.02)
    with pytest.raises(SystemExit, match="c.webp is none of the images"):
        predict(weights, out, images, *arguments)


def test_a_video_becomes_a_video(tmp_path, capsys):
    path, size = tmp_path / "clip.mp4", (96, 64)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, size)
    for i in range(5):
        writer.write(picture(i, size[::-1]))
    writer.release()
    assert predict(make_checkpoint(tmp_path), tmp_path / "out", path, "--threshold", 0) == 0
    written = cv2.VideoCapture(str(tmp_path / "out/clip.mp4"))
    frames = [frame for _, frame in iter(written.read, (False, None))]
    assert len(frames) == 5 and frames[0].shape == (64, 96, 3)
    assert written.get(cv2.CAP_PROP_FPS) == 10
    results = json.loads((tmp_path / "out/detections.json").read_text())["results"]
    assert [r["frame"] for r in results] == list(range(5)) and len(results[0]["objects"]) == 12
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert predict(tmp_path / "model.pth", tmp_path / "out", tmp_path / "broken.mp4") == 1
    assert "broken.mp4 cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("config", sorted(CONFIGS))
def test_a_stripped_checkpoint_is_smaller_and_detects_the_same(tmp_path, config, capsys):
    weights, small = make_checkpoint(tmp_path, config, threshold=0.25), tmp_path / "small.pth"
    assert main(["strip", str(weights), str(small)]) == 0
    assert small.stat().st_size < weights.stat().st_size - 1e6
    content = torch.load(small, weights_only=True)
    assert set(content) == {"model", "run"} and content["run"]["threshold"] == 0.25
    assert content["run"]["stripped"] == {"num_groups": 3} and not stripped_note(weights)
    assert stripped_note(small).startswith("stripped: the primary group of K = 3 alone")
    assert "MiB instead of" in capsys.readouterr().out
    predictors = [Predictor(path, threshold=0.0) for path in (weights, small)]
    assert not torch.equal(
        predictors[0](picture(), group=1).instances.scores,
        predictors[0](picture()).instances.scores,
    )
    expected, found = (predictor(picture()).instances for predictor in predictors)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_stripping_takes_the_running_mean(tmp_path):
    weights = make_checkpoint(tmp_path)
    content = torch.load(weights, weights_only=True)
    mean = {k: v + 0.01 if v.is_floating_point() else v for k, v in content["model"].items()}
    torch.save({**content, "mean_weights": {"model": mean, "updates": 3}}, weights)
    main(["strip", str(weights), str(tmp_path / "small.pth")])
    stripped = torch.load(tmp_path / "small.pth", weights_only=True)["model"]
    name = "head.predictor.class_heads.0.bias"
    assert torch.equal(stripped[name], mean[name])


def test_any_group_can_detect(tmp_path):
    predictor = Predictor(make_checkpoint(tmp_path), threshold=0.0)
    image = picture()
    alone, among_others = predictor(image).instances, predictor(image, group=0).instances
    torch.testing.assert_close(among_others.scores, alone.scores)
    with pytest.raises(UserError, match="group 3 does not exist: the model has 0 .. 2"):
        predictor(image, group=3)


def test_one_look_without_a_flip_is_the_model_itself(tmp_path):
    weights = make_checkpoint(tmp_path)
    plain = Predictor(weights, threshold=0.0)(picture())
    aug = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48,), "TEST.AUG.FLIP", False]
    found = Predictor(weights, threshold=0.0, opts=aug)
    found.detector.merge = lambda looks, limit: looks[0]
    found = found(picture())
    assert torch.equal(found.instances.scores, plain.instances.scores)
    assert torch.equal(found.instances.pred_boxes.tensor, plain.instances.pred_boxes.tensor)


def view_sizes(shape, *opts):
    """The sizes in which test-time augmentation sees an image of that shape."""
    cfg = small_config(CONFIGS["learned"], 1, "INPUT.MIN_SIZE_TEST", 160, *opts)
    image = np.zeros((*shape, 3), np.uint8)
    return [r.get_transform(image).apply_image(image).shape[:2] for r in build_resizes(cfg)]


def test_sizes_of_augmentation_are_those_of_the_model_times_its_scales():
    """A scale of 1 is what the model sees without, up to the bound of the longer side."""
    halves = ["TEST.AUG.SCALES", (0.5, 1.0, 1.002, 1.5), "INPUT.MAX_SIZE_TEST", 400]
    assert view_sizes((100, 125), *halves) == [(80, 100), (160, 200), (240, 300)]
    assert view_sizes((100, 500), *halves) == [(40, 200), (80, 400), (120, 600)]
    assert [min(size) for size in view_sizes((160, 160))] == [
        80,
        100,
        120,
        140,
        *range(160, 241, 20),
    ]
    assert view_sizes((100, 500), *halves, "TEST.AUG.MAX_SIZE", 300)[-1] == (60, 300)
    # images that the model sees as they are
    as_they_are = (*halves, "INPUT.MIN_SIZE_TEST", 0)
    assert view_sizes((100, 300), *as_they_are)[::3] == [(50, 150), (150, 450)]
    assert view_sizes((100, 500), *as_they_are)[1] == (100, 500)
    bounded = (*as_they_are, "TEST.AUG.MAX_SIZE", 400)
    assert view_sizes((100, 500), *bounded)[1] == (80, 400)


def test_sizes_of_augmentation_that_are_given_count():
    given = ["TEST.AUG.MIN_SIZES", (60, 120), "INPUT.MAX_SIZE_TEST", 400]
    assert view_sizes((100, 125), *given) == [(60, 75), (120, 150)]
    assert view_sizes((100, 500), *given) == [(30, 150), (60, 300)]
    assert view_sizes((100, 500), *given, "TEST.AUG.MAX_SIZE", 4000) == [(60, 300), (120, 600)]
    assert view_sizes((100, 500), *given, "INPUT.MIN_SIZE_TEST", 0) == [(60, 300), (120, 600)]
    for key, value in (("MIN_SIZES", (0,)), ("SCALES", ()), ("SCALES", (-1.0,))):
        with pytest.raises(UserError, match=rf"TEST.AUG.{key} is .* has to be"):
            small_config(CONFIGS["learned"], 1, f"TEST.AUG.{key}", value)


def test_a_checkpoint_with_detectron2s_sizes_of_augmentation_has_its_models():
    """They were every model's before there were scales."""
    sizes = [400, 500, 600, 700, 800, 900, 1000, 1100, 1200]
    for aug, expected in (
        ({"MIN_SIZES": sizes, "MAX_SIZE": 4000, "FLIP": True}, {"FLIP": True}),
        ({"MIN_SIZES": sizes, "MAX_SIZE": 900}, {"MAX_SIZE": 900}),
        ({"MIN_SIZES": [60], "MAX_SIZE": 4000}, {"MIN_SIZES": [60], "MAX_SIZE": 4000}),
        ({"MIN_SIZES": sizes, "SCALES": [1.0]}, {"MIN_SIZES": sizes, "SCALES": [1.0]}),
    ):
        detr = {"DENOISING": {}, "TWO_STAGE": ""}
        content = upgrade({"MODEL": {"DETR": detr}, "TEST": {"AUG": dict(aug)}})
        assert content["TEST"]["AUG"] == expected


class Bright(torch.nn.Module):
    """Finds the bright rectangle."""

    detections_per_image, task = 10, BOXES

    def forward(self, batch):
        from detectron2.structures import Boxes, Instances

        (x,) = batch
        _, ys, xs = torch.nonzero(x["image"] > 127).unbind(1)
        scale = torch.tensor([x["width"], x["height"]] * 2) / torch.tensor(
            [*x["image"].shape[1:][::-1]] * 2
        )
        box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        found = Instances((x["height"], x["width"]))
        found.pred_boxes, found.scores = Boxes((box * scale)[None]), torch.tensor([0.5])
        found.pred_classes = torch.tensor([1])
        return [{"instances": found}]


def test_flips_and_sizes_are_undone_before_merging():
    image = torch.zeros(3, 60, 120, dtype=torch.uint8)
    image[:, 10:30, 80:110] = 255
    model = AugmentedModel(Bright(), resizes=[ResizeShortestSide(s) for s in (60, 120)], flip=True)
    assert len(model.resizes) * len(model.flips) == 4
    inputs = {"image": image, "original": image, "height": 60, "width": 120}
    found = model([inputs])[0]["instances"]
    assert len(found) == 1 and found.scores.item() == pytest.approx(0.5)
    expected = torch.tensor([[80.0, 10, 110, 30]])
    torch.testing.assert_close(found.pred_boxes.tensor, expected, atol=1.0, rtol=0)


def test_pictures_of_no_known_kind_are_refused(tmp_path):
    found = Predictor(make_checkpoint(tmp_path))(picture())
    with pytest.raises(UserError, match="seen.xyz cannot be written"):
        found.save(tmp_path / "seen.xyz")
