"""The scripts of examples/ run as they stand, in a few iterations."""

import runpy
import sys

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY

from groupdetr_d2.config import build_config
from groupdetr_d2.data.shapes import register_shapes
from groupdetr_d2.registry import VARIANT_REGISTRY
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# that of exported files is another kind, see inference/test_exported_files.py
TRAINING = [path for path in EXAMPLES if path.stem != "onnx_predict"]
SHORT = [
    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "OUTPUT_DIR", "out"),
    *("SOLVER.IMS_PER_BATCH", "2", "MODEL.DETR.NUM_OBJECT_QUERIES", "9", "TEST.EVAL_PERIOD", "2"),
    *("DATASETS.SHAPES.NUM_TRAIN", "6", "DATASETS.SHAPES.NUM_VAL", "2"),
]


@pytest.fixture
def forgetful():
    """Takes back what an example registers."""
    yield
    for registry, name in ((BACKBONE_REGISTRY, "MobileNet"), (VARIANT_REGISTRY, "own_detr")):
        registry._obj_map.pop(name, None)
    if "squares" in DatasetCatalog.list():
        DatasetCatalog.remove("squares")
        MetadataCatalog.remove("squares")


def write_squares(folder):
    lines = []
    for i in range(6):
        x, y, side = np.random.default_rng(i).integers(20, 50, 3).tolist()
        image = np.zeros((128, 128, 3), np.uint8)
        image[y : y + side, x : x + side] = 255
        cv2.imwrite(str(folder / f"{i}.png"), image)
        lines.append(f"{i}.png,{x},{y},{x + side},{y + side}\n")
    (folder / "squares.csv").write_text("".join(lines))


def test_there_are_five():
    names = [path.stem for path in EXAMPLES]
    assert names == ["onnx_predict", "own_backbone", "own_data", "own_head", "plain_loop"]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_an_example_is_short_and_runs(path, tmp_path, monkeypatch, forgetful, capsys):
    code = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(code) < 30
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(path), *SHORT])
    write_squares(tmp_path)
    register_shapes(build_config("configs/quick_start/conditional_detr_shapes.yaml", SHORT))
    found = runpy.run_path(str(path), run_name="__main__")
    if path.stem == "plain_loop":
        assert capsys.readouterr().out.count("'loss_class':") == 2
        assert all(value.isfinite() for value in found["losses"].values())
    else:
        assert (tmp_path / "out/model_final.pth").is_file()
        assert "bbox/AP" in (tmp_path / "out/metrics.json").read_text()
        assert (tmp_path / "out/first_batches.jpg").is_file()
