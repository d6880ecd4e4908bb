"""AP is COCO's, whichever package computes it."""

import importlib

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.evaluation import coco_metrics
from groupdetr_d2.evaluation.coco_evaluator import CocoEvaluator
from groupdetr_d2.evaluation.coco_metrics import METRICS, RECALLS
from tests.data.test_data import write_set

BOXES = [(2, 3, 10, 8), (20, 5, 12, 12), (4, 20, 9, 15), (1, 1, 33, 36)]


@pytest.fixture
def dataset(tmp_path):
    path = write_set(tmp_path, "val", boxes=BOXES, num_images=9)
    register_coco_instances("metrics", {}, path, str(tmp_path / "images"))
    yield "metrics"
    DatasetCatalog.remove("metrics")
    MetadataCatalog.remove("metrics")


def detections(dataset):
    """Detections with all kinds of mistakes."""
    generator = torch.Generator().manual_seed(0)
    for d in images_of(dataset):
        found = Instances((d["height"], d["width"]))
        true = torch.tensor([a["bbox"] for a in d["annotations"]] + [[1.0, 1, 9, 9]] * 2)
        true = true.repeat(3, 1)
        shifted = true + torch.randn(true.shape, generator=generator)
        corners = torch.cat([shifted[:, :2], shifted[:, :2] + true[:, 2:]], 1)
        found.pred_boxes = Boxes(corners)
        found.scores = torch.rand(len(true), generator=generator)
        found.pred_classes = torch.randint(2, (len(true),), generator=generator)
        yield d, {"instances": found}


def evaluated(evaluator, dataset):
    evaluator.reset()
    for d, output in detections(dataset):
        evaluator.process([d], [output])
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize("package", ["faster_coco_eval", "pycocotools"])
def test_ap_is_that_of_detectron2s_evaluator(dataset, tmp_path, package, monkeypatch):
    expected = evaluated(COCOEvaluator(dataset, ("bbox",), output_dir=str(tmp_path)), dataset)
    if package == "pycocotools":
        original = importlib.import_module
        hidden = lambda name, *rest: (  # noqa: E731  one expression
            (_ for _ in ()).throw(ImportError(name))
            if name == "faster_coco_eval"
            else original(name, *rest)
        )
        monkeypatch.setattr(importlib, "import_module", hidden)
    else:
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is a test extra")
    found = evaluated(CocoEvaluator(dataset, str(tmp_path)), dataset)
    assert set(found) == {*expected, *RECALLS} and 5 < found["AP"] < 60
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_recalls_are_those_of_coco(dataset, tmp_path, monkeypatch):
    """The numbers that COCO's own summary prints last."""
    runs = []
    evaluation = importlib.import_module("pycocotools.cocoeval").COCOeval
    accumulate = evaluation.accumulate
    monkeypatch.setattr(evaluation, "accumulate", lambda run: runs.append(run) or accumulate(run))
    monkeypatch.setattr(
        coco_metrics,
        "evaluation_package",
        lambda: ("pycocotools", importlib.import_module("pycocotools.coco"), evaluation),
    )
    found = evaluated(CocoEvaluator(dataset), dataset)
    (run,) = runs
    run.summarize()
    expected = np.where(run.stats[6:] > -1, 100 * run.stats[6:], np.nan)
    np.testing.assert_allclose([found[name] for name in RECALLS], expected, atol=1e-9)
    assert 5 < found["AR1"] < found["AR10"] <= found["AR"] < 95


def test_some_images_alone(dataset):
    """As an analysis evaluates the first few."""
    evaluator = CocoEvaluator(dataset)
    whole = evaluated(evaluator, dataset)
    some = evaluator.evaluate(img_ids=[11, 12])["bbox"]
    assert some["AP"] != whole["AP"] and np.isfinite(some["AP"])


def test_no_detections_have_no_ap(dataset):
    evaluator = CocoEvaluator(dataset)
    evaluator.reset()
    metrics = evaluator.evaluate()["bbox"]
    assert set(metrics) == {*METRICS, *RECALLS, "AP-cat", "AP-dog"}
    assert all(np.isnan(x) for x in metrics.values())


def masks(module, number, seed, scored):
    """Rectangles with a corner cut off, as polygons of truth or of detections."""
    rng = np.random.default_rng(0)
    noise = np.random.default_rng(seed)
    records = []
    for i in range(number):
        x, y, w, h = rng.uniform(5, 30, 4) + noise.normal(0, 1.5 * scored, 4)
        polygon = [x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h]
        record = {"id": i + 1, "image_id": i % 5 + 1, "category_id": int(rng.integers(1, 3))}
        record |= {"segmentation": [polygon], "bbox": [x, y, w, h], "area": w * h * 0.875}
        record |= {"iscrowd": 0, **({"score": float(noise.uniform())} if scored else {})}
        records.append(record)
    coco = module.COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "width": 80, "height": 80} for i in range(1, 6)],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2)],
        "annotations": records,
    }
    coco.createIndex()
    return coco


def test_both_packages_agree_on_masks():
    """As far as masks are evaluated, one package may take the other's place."""
    faster = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is a test extra")
    coco = importlib.import_module("pycocotools.coco")
    evaluation = importlib.import_module("pycocotools.cocoeval").COCOeval
    found = []
    for module, run in ((faster, faster.COCOeval_faster), (coco, evaluation)):
        result = run(masks(module, 40, 0, False), masks(module, 40, 1, True), "segm")
        result.evaluate()
        result.accumulate()
        found.append(result.eval["precision"])
    assert 0.1 < found[0][found[0] > -1].mean() < 0.95
    assert np.allclose(*found)
