"""Training, evaluation and export as functions of Python: docs/python.md, whose code runs here."""

import json
import re

import cv2
import numpy as np
import pytest

import groupdetr_d2
from groupdetr_d2.api import SHORT_NAMES
from groupdetr_d2.commands import commands_by_name
from groupdetr_d2.config import build_config
from groupdetr_d2.config.keys import all_keys
from groupdetr_d2.errors import UserError
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "python.md"
CONFIG = "quick_start/group_conditional_detr_shapes.yaml"
SMALL = """**{
    "device": "cpu", "iterations": 2, "batch_size": 2, "num_queries": 9, "workers": 0,
    "DATASETS.SHAPES.NUM_TRAIN": 6, "DATASETS.SHAPES.NUM_VAL": 4, "TEST.EVAL_PERIOD": 0,
    "MODEL.SMALL_RESNET.CHANNELS": [4, 4, 8, 16, 32], "MODEL.DETR.DEC_LAYERS": 2,
}"""


def write_cards(folder):
    """Four pictures with a card each, as COCO's annotations of training and validation."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(4):
        picture = np.zeros((64, 80, 3), np.uint8)
        picture[10 : 30 + i, 20:50] = 255
        cv2.imwrite(str(folder / "images" / f"{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 64})
        box = {"bbox": [20, 10, 30, 20 + i], "area": 30 * (20 + i), "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, "category_id": 1, **box})
    categories = [{"id": 1, "name": "ace"}]
    for name, part in (("train", slice(0, 2)), ("val", slice(2, 4))):
        content = {"images": images[part], "annotations": annotations[part]}
        (folder / f"{name}.json").write_text(json.dumps({**content, "categories": categories}))


@pytest.fixture
def page(tmp_path):
    """What the code of the page leaves, run from top to bottom with small models."""
    folder = tmp_path / "page"
    folder.mkdir()
    write_cards(folder / "cards")
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "street.jpg"), noise)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 7
    code = "\n".join(blocks)
    assert code.count("epochs=4") == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        namespace = {"folder": folder}
        exec(code.replace("epochs=4", SMALL), namespace)
        yield namespace


def test_the_code_of_the_page_does_what_it_says(page, tmp_path):
    run, numbers = page["run"], page["numbers"]
    assert run.folder.name == "cards" and run.weights.name == "model_best.pth"
    recorded = [x["bbox/AP"] for x in run.history if "bbox/AP" in x]
    assert run.metrics["bbox/AP"] == pytest.approx(recorded[-1])
    assert numbers["bbox/AP"] == pytest.approx(run.metrics["bbox/AP"], abs=1e-6)
    assert [len(x.image) for x in page["several"]] == [60, 60, 60]
    assert (page["folder"] / "seen.jpg").is_file()
    assert (page["folder"] / "output" / "first.onnx").is_file()
    first = build_config(str(page["folder"] / "output" / "first" / "config.yaml"))
    assert first.MODEL.DETR.NUM_GROUPS == 5
    batches_of_evaluation_find_the_same(page, tmp_path)
    a_configuration_can_be_given_as_a_value_and_a_run_goes_on(page)


def batches_of_evaluation_find_the_same(page, tmp_path):
    """Of the images of one size, one by one and together."""
    run = page["run"]
    one = groupdetr_d2.evaluate(run.weights, output=tmp_path, batch_size=1, workers=0)
    assert one["bbox/AP"] == pytest.approx(page["numbers"]["bbox/AP"], abs=1e-6)
    files = [x / "inference" / "coco_instances_results.json" for x in (tmp_path, run.folder)]
    first, second = (
        sorted(json.loads(file.read_text()), key=lambda x: (x["image_id"], -x["score"]))
        for file in files
    )
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def a_configuration_can_be_given_as_a_value_and_a_run_goes_on(page):
    run = page["run"]
    cfg = build_config(str(run.folder / "config.yaml"))
    cfg.SOLVER.MAX_ITER = 3
    longer = groupdetr_d2.train(cfg, resume=True, output=run.folder)
    assert longer.folder == run.folder and longer.metrics
    assert "MAX_ITER: 3" in (run.folder / "config.yaml").read_text()
    assert longer.predictor(threshold=0).names == ["ace"]


def test_export_passes_the_options_of_the_command_on(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(commands_by_name()["export"], "run", given.append)
    path = groupdetr_d2.export(
        "a.pth", tmp_path / "a.onnx", image_size=(64, 64), static=True, **{"SEED": 1}
    )
    (args,) = given
    assert path == tmp_path / "a.onnx" and args.out == str(path)
    assert args.image_size == (64, 64) and args.static and args.opts == ["SEED", 1]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: groupdetr_d2.train(CONFIG, epoch=3), "epoch is no option.*epochs"),
        (
            lambda: groupdetr_d2.train("no_such", output="o"),
            "no_such does not exist; .*models. lists all",
        ),
        (lambda: groupdetr_d2.train(CONFIG, **{"SOLVER.MAX_ITERS": 3}), "the nearest is SOLVER"),
        (lambda: groupdetr_d2.train(CONFIG, train_images="a"), "without --train-json"),
        (lambda: groupdetr_d2.evaluate("no.pth"), "no.pth does not exist"),
        (lambda: groupdetr_d2.export("no.pth", "a.onnx", statik=True), "statik is no option"),
    ],
)
def test_mistakes_are_raised_with_the_remedy(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call()


def test_short_names_are_of_keys():
    assert set(SHORT_NAMES.values()) <= set(all_keys(build_config()))


def test_the_table_of_names_is_that_of_the_code():
    for name, key in SHORT_NAMES.items():
        assert re.search(
            rf"^\| .*`{name}`.* \| .*{re.escape(key)}", PAGE.read_text(), re.MULTILINE
        ), name
