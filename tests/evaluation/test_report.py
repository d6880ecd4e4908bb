"""What an evaluation leaves: curves, threshold, confusion, pages; and the comparison of runs."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from matplotlib.backends.backend_agg import FigureCanvasAgg

from groupdetr_d2 import Predictor
from groupdetr_d2.analysis.compare import new_comparison, table_of_others
from groupdetr_d2.commands import run as main
from groupdetr_d2.config import build_config
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
from groupdetr_d2.evaluation.examples import Outcome, chosen_examples
from groupdetr_d2.evaluation.metrics_file import read_metrics
from groupdetr_d2.evaluation.training_curves import draw_curves, shared_loss
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


@pytest.fixture(scope="module")
def report(finished_run, tmp_path_factory):
    """The page of the run, opened from elsewhere."""
    copy = tmp_path_factory.mktemp("elsewhere") / "mailed.html"
    copy.write_bytes((finished_run / "report.html").read_bytes())
    with open_page(copy.as_uri()) as page:
        yield page


def test_the_report_is_whole_in_a_browser(report):
    """Every picture is inside the file, and the page is as wide as a screen or a telephone."""
    widths = report.evaluate("[...document.images].filter(i => i.src).map(i => i.naturalWidth)")
    assert len(widths) >= 7 and min(widths) > 100
    headings = report.locator("h2").all_inner_texts()
    assert headings[:4] == ["Summary", "Examples", "Classes", "Training"]
    assert headings[4:] == ["Curves and confusion", "Labels", "Run", "Next", "Configuration"]
    assert report.locator("nav a").count() == len(headings)
    text = report.inner_text("body")
    assert "small, area below 32 x 32 pixels" in text and "AR of the detections of each" in text
    assert "The last validation loss: total_loss" in text
    assert re.search(r"duration\s+0:00:\d\d until iteration 6", text)
    assert re.search(r"versions\s+Python 3", text) and re.search(r"commit\s+\w{7,}", text)
    report.locator("summary", has_text="2 classes").first.click()
    rows = report.locator("details[open] tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["class", "cat", "dog", "all"]
    for width in (390, 1200):
        report.set_viewport_size({"width": width, "height": 800})
        assert report.evaluate("document.documentElement.scrollWidth") <= width
    loaded = report.evaluate("performance.getEntriesByType('resource').map(r => r.name)")
    assert all(name.startswith("data:") for name in loaded)


def test_pictures_of_the_report_enlarge_on_a_click_and_by_keyboard(report):
    buttons, caption = report.locator("button.zoom"), report.locator("dialog figcaption")
    names = buttons.evaluate_all("all => all.map(b => b.querySelector('img').alt)")
    opened = "document.querySelector('dialog').open"
    buttons.nth(1).click()
    assert report.evaluate(opened) and caption.inner_text() == names[1]
    large, small = (
        x.bounding_box()["width"] for x in (report.locator("dialog img"), buttons.nth(1))
    )
    assert large > 1.5 * small
    report.keyboard.press("ArrowRight")
    assert caption.inner_text() == names[2]
    report.keyboard.press("Escape")
    assert not report.evaluate(opened)
    # the dialog gives the focus back when it tells that it is closed, a moment later
    has_focus = "label => document.activeElement.ariaLabel === label"
    report.wait_for_function(has_focus, arg=f"enlarge: {names[2]}", timeout=5000)
    report.keyboard.press("Enter")
    report.locator("dialog button", has_text="close").click()
    assert not report.evaluate(opened)


def outcome(right, missed=0, extra=0, wrong=0):
    return Outcome(right, missed, extra, wrong)


def test_worst_random_and_good_images_are_chosen():
    outcomes = [outcome(i, missed=10 - i) for i in range(11)] + [outcome(0), outcome(20)]
    chosen = chosen_examples(outcomes, number=3)
    assert chosen["Worst"] == [0, 1, 2] and chosen["Good"] == [12, 10, 9]
    everything = sum(chosen.values(), [])
    assert len(set(everything)) == len(everything) == 9
    assert chosen_examples(outcomes, number=3) == chosen
    assert chosen_examples([outcome(1)]) == {"Worst": [], "Random": [], "Good": [0]}
    assert chosen_examples([]) == {"Worst": [], "Random": [], "Good": []}


def test_the_outcome_of_an_image_is_counted_from_its_pairs():
    found = Outcome.of(np.array([[0, 0], [1, 1], [0, 1], [-1, 1], [2, -1], [2, -1]]))
    assert (found.right, found.missed, found.extra, found.wrong) == (2, 2, 1, 1)
    assert found.mistakes == 4 and found.f1 == pytest.approx(2 * 2 / (4 + 2 + 1 + 2))
    assert str(found) == "2 right, 2 missed, 1 extra, 1 wrong"
    nothing = Outcome.of(np.zeros((0, 2), dtype=int))
    assert nothing.f1 == 1 and str(nothing) == "nothing there, nothing found"


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
    assert "<script>alert" not in text and "&lt;script&gt;" in text and "empty" not in text
    shown = html_report.picture(b"", "png", '"><script>alert(1)</script>')
    assert "<script>" not in shown and shown.count(">") == 3


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
    assert float(rows[0]["validation loss"]) > 0
    assert {"AP75", "APs"} < set(rows[0]) and "\nAP75 " in output
    assert json.loads(records.splitlines()[-1])["bbox/AP"] >= 0
    with pytest.raises(SystemExit, match="no output folder of a training"):
        main(["compare", str(tmp_path)])


def test_a_comparison_has_the_errors_and_classes_of_boxes_in_space(tmp_path, capsys):
    for name, error in (("one", 0.8), ("five", 0.5)):
        folder = tmp_path / name
        folder.mkdir()
        petr = build_config(str(ROOT / "configs/quick_start/petr_cubes.yaml"), [])
        (folder / "config.yaml").write_text(petr.dump())
        last = {"nuscenes/NDS": 30.0, "nuscenes/mAP": 20.0, "nuscenes/mATE": error}
        first = {"iteration": 1, "total_loss": 3.0, **last, "nuscenes/mATE": 0.9}
        records = [first, {"iteration": 3, "total_loss": 2.0, **last, "nuscenes/AP-car": 40.0}]
        (folder / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in records))
    folders = [str(tmp_path / name) for name in ("one", "five")]
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    rows = list(csv.DictReader((tmp_path / "out/compare.csv").open()))
    assert [(row["best NDS"], row["mATE"], row["AP-car"]) for row in rows] == [
        ("30.0000", "0.8000", "40.0000"),
        ("30.0000", "0.5000", "40.0000"),
    ]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["last", "one", "five"] in lines and ["mATE", "0.80", "0.50"] in lines
    assert ["AP-car", "40.00", "40.00"] in lines and "best mATE" not in rows[0]


def test_the_classes_of_a_comparison_are_shown_if_they_are_few():
    metrics = {f"AP-{i}": 1.0 for i in range(21)}
    assert "AP-3" not in table_of_others({"run": {**metrics, "APs": 2.0}})
    assert "AP-3" in table_of_others({"run": {"AP-3": 1.0, "APs": 2.0}})
    assert table_of_others({"run": {}}) == ""


@pytest.mark.parametrize("number", [1, 3, 14])
def test_axes_and_names_of_a_comparison_do_not_overlap(number):
    records = [
        {"iteration": i, "epoch": i / 50, "total_loss": 1000.0 - i, "bbox/AP": float(i)}
        for i in range(0, 100, 20)
    ]
    records += [{"iteration": 99, "validation/total_loss": 900.0}]
    runs = {f"a_run_with_a_long_name_{i}": records for i in range(number)}
    figure = new_comparison(runs, "bbox/AP")
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(runs)
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [legend.get_window_extent()]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])
        assert one.x0 >= 0 and one.y0 >= 0 and one.x1 <= figure.bbox.x1
    left, right = figure.axes
    dashed = [line for line in left.lines if line.get_linestyle() == "--"]
    assert len(dashed) == number and len(right.lines) == number
    assert dashed[0].get_ydata() == [900.0] and left.get_xlabel() == "epoch"


def test_the_training_curve_is_of_the_terms_that_a_validation_has(tmp_path):
    terms = {"loss_class": 2.0, "loss_class_0": 1.0, "loss_class_dn": 5.0, "loss_class_enc": 7.0}
    record = {"iteration": 3, "total_loss": 15.0, "lr": 0.1, **terms}
    assert shared_loss(record) == 3.0 and shared_loss({"total_loss": 4.0}) == 4.0
    (tmp_path / "metrics.json").write_text(json.dumps(record) + "\n")
    draw_curves(tmp_path, tmp_path / "curves.png", ["bbox/AP"])
    assert cv2.imread(str(tmp_path / "curves.png")) is not None
    draw_curves(tmp_path / "nothing", tmp_path / "empty.png", ["bbox/AP"])
