"""What an evaluation leaves: curves, threshold, confusion, pages; and the comparison of runs."""

import contextlib
import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from groupdetr_d2 import Predictor
from groupdetr_d2.commands import run as main
from groupdetr_d2.engine.report import next_commands
from groupdetr_d2.engine.setup import settle_config
from groupdetr_d2.evaluation import html_report
from groupdetr_d2.evaluation.detection_curves import (
    ImageResult,
    all_curves,
    best_threshold,
    box_overlaps,
    confusion_matrix,
    mistakes_of,
    pairs_of,
)
from groupdetr_d2.evaluation.evaluation_report import Evaluation, per_class_rows
from groupdetr_d2.evaluation.metrics_file import read_metrics
from groupdetr_d2.tasks.boxes import BOXES
from tests.browser import open_page
from tests.conftest import ROOT
from tests.data.test_data import custom_config, write_set
from tests.engine.test_engine import tiny_run, train_net


def image(true, found, crowd=()):
    """`true` and `found` are (class, x, score) of boxes of 10 x 10 pixels."""
    boxes = [
        np.array([[x, 0, x + 10, 10] for _, x, *_ in rows], dtype=float).reshape(-1, 4)
        for rows in (found, true)
    ]
    is_crowd = np.array([i in crowd for i in range(len(true))], dtype=bool)
    return ImageResult(
        name="image.jpg",
        true_classes=np.array([c for c, *_ in true], dtype=int),
        crowd=is_crowd,
        classes=np.array([c for c, *_ in found], dtype=int),
        scores=np.array([s for *_, s in found], dtype=float),
        overlaps=box_overlaps(*boxes, is_crowd),
    )


def test_curves_by_hand():
    """Three objects; found: right 0.9, a second box on it 0.8, right 0.7, nothing there 0.2."""
    one = image([(0, 0), (0, 50), (0, 90)], [(0, 1, 0.9), (0, 0, 0.8), (0, 50, 0.7), (0, 200, 0.2)])
    (curves,), together = all_curves([one], 1)
    np.testing.assert_allclose(curves.precision, [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(curves.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    # precision 1 up to recall 1/3 (34 points), 2/3 up to 2/3 (33), then 0
    assert curves.average_precision == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert best_threshold(together) == 0.7
    assert together.at(0.7) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert together.at(0.95) == (0, 0, 0)


def test_crowds_and_empty_images_do_not_count():
    crowded = image([(0, 0), (0, 100)], [(0, 0, 0.9), (0, 100, 0.8)], crowd=[1])
    (curves, other), together = all_curves([crowded, image([], [])], 2)
    assert curves.num_objects == 1 and curves.precision.tolist() == [1.0]
    assert np.isnan(other.average_precision) and len(together.scores) == 1
    assert mistakes_of(pairs_of(crowded, 0.5)) == 0
    nothing = all_curves([image([], [])], 1)[1]
    assert best_threshold(nothing) == 0.5


def test_confusion_counts_every_object_and_every_detection_once():
    mixed = image(
        [(0, 0), (1, 50), (1, 90)], [(1, 0, 0.9), (1, 50, 0.8), (0, 200, 0.7), (0, 90, 0.1)]
    )
    matrix = confusion_matrix([pairs_of(mixed, 0.5)] * 2, 2)
    expected = np.array([[0, 1, 0], [0, 1, 1], [1, 0, 0]])  # truth: 0, 1, nothing
    assert (matrix == 2 * expected).all() and mistakes_of(pairs_of(mixed, 0.5)) == 3


def test_ap50_is_that_of_coco(tmp_path):
    """Of detections with all kinds of mistakes; the file of results and the ground truth agree."""
    names = [{"id": 7, "name": "cat"}, {"id": 30, "name": "dog"}]
    boxes = [(2, 3, 10, 8), (20, 5, 12, 12), (4, 20, 9, 15)]
    val = write_set(tmp_path, "val", boxes=boxes, categories=names, num_images=9)
    cfg = custom_config(tmp_path, val=val)
    settle_config(cfg)
    (dataset,) = cfg.DATASETS.TEST
    generator = torch.Generator().manual_seed(0)
    evaluator = BOXES.build_evaluator(dataset, str(tmp_path))
    evaluator.reset()
    for d in DatasetCatalog.get(dataset):
        found = Instances((d["height"], d["width"]))
        true = torch.tensor([a["bbox"] for a in d["annotations"]] + [[1.0, 1, 9, 9]] * 2)
        true = true.repeat(2, 1)
        shifted = true + torch.randn(true.shape, generator=generator)
        found.pred_boxes = Boxes(torch.cat([shifted[:, :2], shifted[:, :2] + true[:, 2:]], 1))
        found.scores = torch.rand(len(true), generator=generator)
        found.pred_classes = torch.randint(2, (len(true),), generator=generator)
        evaluator.process([d], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = evaluator.evaluate()["bbox"]
    found = BOXES.read_results(dataset, tmp_path / "coco_instances_results.json")
    evaluation = Evaluation.of(found, ["cat", "dog"])
    rows = {row["class"]: row for row in per_class_rows(evaluation, metrics, BOXES.presentation)}
    assert 5 < metrics["AP50"] < 95
    assert rows["all"]["AP50"] == pytest.approx(metrics["AP50"], abs=1e-6)
    assert rows["dog"]["AP"] == metrics["AP-dog"] and rows["all"]["objects"] == 24
    results = BOXES.read_results(dataset, tmp_path / "coco_instances_results.json")
    assert [len(r.true_classes) for r in results] == [0] + 8 * [3]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_net(*tiny_run(folder, "TEST.EVAL_PERIOD", 3))
    return folder / "out"


def test_a_training_leaves_a_report_and_the_threshold(finished_run):
    names = "report.html per_class.csv pr_curve.png f1_curve.png confusion_matrix.png"
    for name in (*names.split(), "predictions.png", "first_batches.jpg", "curves.png"):
        assert (finished_run / name).stat().st_size > 0, name
    rows = list(csv.DictReader((finished_run / "per_class.csv").open()))
    assert [row["class"] for row in rows] == ["cat", "dog", "all"]
    for name in ("model_final.pth", "model_best.pth"):
        run = torch.load(finished_run / name, weights_only=True)["run"]
        assert 0 < run["threshold"] < 1, name
    assert Predictor(finished_run / "model_final.pth").threshold == pytest.approx(
        torch.load(finished_run / "model_final.pth", weights_only=True)["run"]["threshold"]
    )


def test_the_report_is_whole_in_a_browser(finished_run, tmp_path):
    """Every picture is inside the file: it is opened from elsewhere."""
    copy = tmp_path / "mailed.html"
    copy.write_bytes((finished_run / "report.html").read_bytes())
    with open_page(copy.as_uri()) as page:
        widths = page.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert len(widths) == 6 and min(widths) > 100
        headings = page.locator("h2").all_inner_texts()
        assert headings[:3] == ["Summary", "Classes", "Training"]
        assert page.locator("table tr").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200
        loaded = page.evaluate("performance.getEntriesByType('resource').map(r => r.name)")
        assert all(name.startswith("data:") for name in loaded)


def test_an_evaluation_alone_names_the_weights_it_was_of(tmp_path):
    cfg = custom_config(tmp_path, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", "of/others.pth")
    settle_config(cfg)
    assert "--weights of/others.pth --out" in next_commands(cfg)
    (tmp_path / "model_best.pth").touch()
    assert f"--weights {tmp_path}/model_best.pth --out" in next_commands(cfg)


def test_half_a_line_of_metrics_is_passed_over(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "x": 2}\n{"iterat{"iteration": 2}\n')
    assert read_metrics(tmp_path) == [{"iteration": 1, "x": 2}]


def test_names_cannot_inject_markup():
    rows = [{"class": "<script>alert(1)</script>", "AP": 0.5}]
    text = html_report.page("a & b", {"x": html_report.table(rows), "empty": ""})
    assert "<script>" not in text and "&lt;script&gt;" in text and "empty" not in text


def test_runs_are_compared_by_a_command_that_builds_no_model(finished_run, tmp_path):
    """In a process of its own, in which nothing else registers the meta-architectures."""
    command = [sys.executable, "-W", "ignore", "-m", "groupdetr_d2", "compare", str(finished_run)]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, cwd=ROOT)
    assert (tmp_path / "compare.csv").is_file()


def test_runs_are_compared(finished_run, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    records = (finished_run / "metrics.json").read_text()
    (other / "metrics.json").write_text(records)
    config = (finished_run / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("NUM_GROUPS: 2", "NUM_GROUPS: 7"))
    assert main(["compare", str(finished_run), str(other), "--out", str(tmp_path / "cmp")]) == 0
    rows = list(csv.DictReader((tmp_path / "cmp/compare.csv").open()))
    assert [row["run"] for row in rows] == ["out", "other"] and rows[0]["iterations"] == "6"
    output = capsys.readouterr().out
    (line,) = [x for x in output.splitlines() if "NUM_GROUPS" in x]
    assert line.split() == ["MODEL.DETR.NUM_GROUPS", "2", "7"] and "OUTPUT_DIR" not in output
    assert (tmp_path / "cmp/compare.png").stat().st_size > 5000
    assert json.loads(records.splitlines()[-1])["bbox/AP"] >= 0
    with pytest.raises(SystemExit, match="no output folder of a training"):
        main(["compare", str(tmp_path)])
