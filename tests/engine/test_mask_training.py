"""A training of masks: data, resume, report, analyses, stripping."""

import csv
import json

import cv2
import pytest
import torch

from groupdetr_d2 import Predictor
from groupdetr_d2.analysis import runs
from groupdetr_d2.commands import run as main
from groupdetr_d2.engine import report
from tests.conftest import MASK2FORMER, ROOT
from tests.data.test_data import write_set
from tests.engine.test_engine import run_in_process

LEVELS = "['res2', 'res3', 'res4']"


def mask_run(tmp_path, *opts, out="out"):
    """The arguments of a training on a handful of generated images with masks."""
    shard = [[2, 3, 30, 3, 22, 20, 30, 35, 2, 28]]
    train, val = (
        write_set(tmp_path, x, boxes=[(2, 3, 28, 32)], num_images=8, segmentation=shard)
        for x in ("train", "val")
    )
    images = str(tmp_path / "images")
    model = [
        *("MODEL.BACKBONE.NAME", "build_small_resnet_backbone", "MODEL.RESNETS.NORM", "GN"),
        *("MODEL.SMALL_RESNET.CHANNELS", "[32, 32, 64, 96]", "MODEL.DETR.IN_FEATURES", LEVELS),
        *("MODEL.RESNETS.OUT_FEATURES", LEVELS, "MODEL.DETR.SIZE_DIVISIBILITY", 16),
        *("MODEL.DETR.HIDDEN_DIM", 32, "MODEL.DETR.NHEADS", 4, "MODEL.DETR.NUM_GROUPS", 3),
        *("MODEL.DETR.NUM_OBJECT_QUERIES", 5, "MODEL.DETR.ENC_LAYERS", 1, "MODEL.WEIGHTS", ""),
        *("MODEL.DETR.DEC_LAYERS", 3, "MODEL.DETR.DROPOUT", 0.1, "MODEL.DEVICE", "cpu"),
        *("MODEL.DETR.TRAIN_NUM_POINTS", 64, "MODEL.DETR.DIM_FEEDFORWARD", 48),
    ]
    solver = [
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 6, "SOLVER.STEPS", "[5]", "SEED", 3),
        *("SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 0, "DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.AMP.ENABLED", False, "INPUT.IMAGE_SIZE", 64, "INPUT.MIN_SIZE_TEST", 48),
        *("OUTPUT_DIR", tmp_path / out),
    ]
    data = ["--train-json", train, "--train-images", images, "--val-json", val]
    config = ["--config-file", ROOT / MASK2FORMER, *data, "--val-images", images]
    return [*config, *model, *solver, *opts]


def test_resumed_training_gives_the_losses_of_an_uninterrupted_one(tmp_path, every_iteration):
    """With large-scale jitter, the random points of the losses, and dropout; bit for bit."""
    run_in_process(mask_run(tmp_path, out="whole"))
    whole = list(every_iteration)
    every_iteration.clear()
    run_in_process(mask_run(tmp_path, out="parts"), iterations=3)
    run_in_process(mask_run(tmp_path, out="parts"), resume=True)
    assert len(whole) == 6 and every_iteration == whole


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training's folder with two numbered checkpoints, three groups, evaluated twice."""
    folder = tmp_path_factory.mktemp("masks")
    run_in_process(mask_run(folder, "TEST.EVAL_PERIOD", 3), pictures=True)
    return folder / "out"


def test_what_a_training_leaves(training):
    """Metrics of masks and of the boxes around them; the best checkpoint by mask AP; pictures."""
    metrics = [json.loads(x) for x in (training / "metrics.json").read_text().splitlines()]
    assert "segm/AP" in metrics[-1] and "bbox/AP" in metrics[-1]
    for name in ("predictions.png", "pr_curve.png", "first_batches.jpg", "curves.png"):
        assert cv2.imread(str(training / name)) is not None
    assert "AP" in next(csv.DictReader((training / "per_class.csv").open()))
    assert report.__name__ and (training / "report.html").read_text().count("<img") >= 4
    assert runs.read_folder(training, "masks").ap.keys() == {3, 6}
    assert "segm/AP" in (training / "log.txt").read_text()


def test_the_primary_group_alone_predicts_the_same(training, tmp_path):
    weights = training / "model_final.pth"
    assert main(["strip", str(weights), str(tmp_path / "small.pth")]) == 0
    image = str(next((training.parent / "images").glob("val_1*")))
    whole, small = (Predictor(x, threshold=0.0)(image) for x in (weights, tmp_path / "small.pth"))
    assert torch.equal(whole.instances.pred_masks, small.instances.pred_masks)
    assert torch.equal(whole.instances.scores, small.instances.scores)


def analyze(name, out, *arguments):
    assert main(["analyze", name, "--out", str(out), *map(str, arguments)]) == 0
    assert all(cv2.imread(str(p)) is not None for p in out.glob("*.png"))
    table = out / f"{name}.csv"
    return list(csv.DictReader(table.open())) if table.is_file() else []


def test_mask_ap_of_every_group(training, tmp_path):
    """Group 0 alone is what evaluation gave; masks are not fused."""
    rows = analyze("groups", tmp_path, "--weights", training / "model_final.pth")
    assert [r["group"] for r in rows] == ["0", "1", "2"]
    last = json.loads((training / "metrics.json").read_text().splitlines()[-1])
    assert float(rows[0]["AP"]) == pytest.approx(last["segm/AP"], abs=1e-3)


def test_masks_of_queries_over_the_layers(training, tmp_path):
    weights = ["--weights", training / "model_final.pth"]
    rows = analyze("queries", tmp_path, *weights, "--num-images", 3)
    assert {(r["group"], r["layer"]) for r in rows} == {(k, i) for k in "012" for i in "0123"}
    assert all(0 <= float(r["IoU"]) <= 1 for r in rows)
    assert len(list(tmp_path.glob("queries_*.png"))) == 2  # the first image has no object


def test_other_analyses_of_masks(training, tmp_path):
    weights = ["--weights", training / "model_final.pth"]
    image = next((training.parent / "images").glob("val_1*"))
    rows = analyze("attention", tmp_path / "a", *weights, "--image", image, "--layer", 2)
    assert len(rows) == 5
    for row in rows:  # of the image, not of what it is padded to
        assert 0 <= float(row["x0"]) <= float(row["x1"]) <= 1
    with pytest.raises(SystemExit, match="--layer is 0; layers 1 to 3 have attention"):
        analyze("attention", tmp_path / "a", *weights, "--image", image, "--layer", 0)
    assert analyze("duplicates", tmp_path / "d", *weights)
    rows = analyze("stability", tmp_path / "s", "--run", f"three={training}")
    assert float(rows[0]["instability"]) >= 0
