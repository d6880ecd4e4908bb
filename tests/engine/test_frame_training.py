"""Training, evaluation and report of models of several cameras, on a small copy of nuScenes."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.commands import run
from groupdetr_d2.config import build_config
from groupdetr_d2.data.nuscenes.catalog import frames_of
from groupdetr_d2.engine.setup import settled
from groupdetr_d2.engine.trainer import Trainer
from groupdetr_d2.tasks.boxes3d import BOXES3D
from tests.conftest import ROOT

CUBES = [
    *("DATASETS.CUBES.TRAIN_SCENES", 2, "DATASETS.CUBES.VAL_SCENES", 1),
    *("DATASETS.CUBES.KEYFRAMES", 3, "DATASETS.CUBES.WIDTH", 88, "DATASETS.CUBES.HEIGHT", 48),
    *("DATASETS.CUBES.OBJECTS", 10, "DATASETS.CUBES.FAR", 14.0, "INPUT.VIEWS.SIZE", [48, 88]),
    *("MODEL.DEVICE", "cpu", "SEED", 0, "DATALOADER.NUM_WORKERS", 0),
]
SMALL = [
    *("MODEL.SMALL_RESNET.CHANNELS", [32, 32, 64], "MODEL.RESNETS.OUT_FEATURES", ["res3"]),
    *("MODEL.DETR.IN_FEATURES", ["res3"], "MODEL.DETR.HIDDEN_DIM", 64),
    *("MODEL.DETR.NUM_OBJECT_QUERIES", 20, "MODEL.DETR.DEC_LAYERS", 2),
    *("MODEL.DETR.SPACE.NUM_DEPTHS", 8, "TEST.DETECTIONS_PER_IMAGE", 30),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


def config(folder, name, *opts):
    path = str(ROOT / f"configs/quick_start/{name}_cubes.yaml")
    return settled(build_config(path, [*CUBES, *SMALL, *opts]))


@pytest.fixture
def datasets(folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    return folder


def test_petrv2_names_the_training_that_it_goes_on_from(tmp_path, monkeypatch, capsys):
    """Before any scene is generated."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(["train", "--config-file", "configs/quick_start/group_petrv2_cubes.yaml"])
    said = f"{end.value}{capsys.readouterr().err}"
    assert "output/group_petr_cubes/model_final.pth (MODEL.WEIGHTS) does not exist" in said
    assert "--config-file configs/quick_start/group_petr_cubes.yaml makes it" in said
    assert not (tmp_path / "datasets").exists()


@pytest.mark.parametrize("name", ["group_petr", "petrv2"])
def test_a_run_leaves_metrics_a_report_and_the_best_checkpoint(datasets, tmp_path, name):
    out = tmp_path / "out"
    opts = ["SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 2]
    Trainer(config(datasets, name, *opts, "OUTPUT_DIR", str(out))).train()
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert {"nuscenes/NDS", "nuscenes/mAP", "nuscenes/mAVE", "nuscenes/AP-car"} <= {*metrics[-1]}
    page = (out / "report.html").read_text()
    assert "NDS" in page and "mAOE" in page and "AP at 2 m" in page
    names = ("model_best.pth", "model_final.pth", "first_batches.jpg", "predictions.png")
    assert all((out / name).is_file() for name in names)
    results = json.loads((out / "inference" / "nuscenes_results.json").read_text())["results"]
    assert len(results) == 3


def test_a_resumed_run_sees_the_same_frames(datasets, tmp_path):
    """Images, earlier frames, crops and turns of an uninterrupted run, to the last digit."""
    opts = ["SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 0, "SOLVER.IMS_PER_BATCH", 2]
    opts += ["SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", (), "MODEL.DETR.DROPOUT", 0.1]
    opts += ["INPUT.GRID_MASK", 0.7, "INPUT.VIEWS.SIZE", [40, 72], "INPUT.VIEWS.SCALES", [0.9, 1.1]]
    opts += ["INPUT.RANDOM_FLIP", "horizontal", "INPUT.VIEWS.ROTATION", 0.3]
    opts += ["INPUT.VIEWS.SPACE_SCALES", [0.95, 1.05], "DATALOADER.NUM_WORKERS", 1]
    whole = Trainer(config(datasets, "petrv2", *opts, "OUTPUT_DIR", str(tmp_path / "whole")))
    whole.train()
    half = config(datasets, "petrv2", *opts, "OUTPUT_DIR", str(tmp_path / "half"))
    first = Trainer(half)
    first.max_iter = 2
    first.train()
    second = Trainer(half)
    second.resume_or_load(resume=True)
    assert second.start_iter == 2
    second.train()
    pairs = zip(whole.raw_model.parameters(), second.raw_model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_petrv2_sees_images_between_keyframes(datasets):
    opts = ["DATASETS.CUBES.SWEEPS", 2, "INPUT.VIEWS.FRAME_SECONDS", 0.167]
    cfg = config(datasets, "petrv2", *opts)
    mapper = BOXES3D.build_mapper(cfg, is_train=True)
    mapper.augments = False
    item = mapper(frames_of("cubes_train")[1])
    assert item["interval"] == pytest.approx(0.5 / 3, abs=0.01) and len(item["image"]) == 12
    assert not torch.equal(item["image"][:6], item["image"][6:])
    torch.manual_seed(0)
    assert all(torch.isfinite(loss) for loss in build_model(cfg)([item]).values())


@pytest.mark.slow
def test_two_keyframes_are_learnt_by_heart(datasets):
    """Without groups: every object has a detection of its class within half a metre."""
    opts = ["MODEL.DETR.NUM_GROUPS", 1, "MODEL.DETR.HIDDEN_DIM", 96]
    cfg = config(datasets, "petr", *opts, "MODEL.DETR.NHEADS", 8)
    mapper, frames = BOXES3D.build_mapper(cfg, is_train=True), frames_of("cubes_train")
    mapper.augments = False
    batch = [mapper(frames[i]) for i in (0, 3)]
    torch.manual_seed(0)
    model, steps = build_model(cfg), 200
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        results = model.eval()(batch)
    distances = []
    for item, result in zip(batch, results, strict=True):
        true, found = item["instances"], result["instances"][: 2 * len(item["instances"])]
        apart = torch.cdist(true.gt_boxes3d[:, :2], found.pred_boxes3d[:, :2])
        apart[true.gt_classes[:, None] != found.pred_classes] = np.inf
        distances += apart.min(1).values.tolist()
    assert np.mean(np.array(distances) < 0.5) > 0.9
