import re

import pytest

from groupdetr_d2.commands import run as main
from tests.conftest import ROOT, SHRINK

VIT = str(ROOT / "configs/DINO/group_dino_4scale_ViT_B_20ep.yaml")
SHAPES = ["DATASETS.TRAIN", ("shapes_train",), "DATASETS.TEST", ("shapes_val",)]
SIZE = ["INPUT.MIN_SIZE_TRAIN", [64], "INPUT.MAX_SIZE_TRAIN", 96]
FEW = ["DATASETS.SHAPES.NUM_TRAIN", 6, "DATASETS.SHAPES.NUM_VAL", 3, "MODEL.DETR.NUM_CLASSES", 6]


def printed(capsys, *opts):
    assert main(["train", "--dry-run", "--config-file", VIT, *map(str, opts)]) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_training_is_described_and_not_begun(capsys, elsewhere):
    opts = [*SHRINK, *SHAPES, *FEW, *SIZE, "SOLVER.EPOCHS", 4, "OUTPUT_DIR", elsewhere / "run"]
    text = printed(capsys, *opts, "MODEL.FREEZE", "['backbone.net.patch_embed.*']")
    assert re.search(r"^MODEL.VIT.DEPTH +2$", text, re.M) and "MODEL.MASK_ON" not in text
    assert "6 training images of shapes_train" in text
    assert "3 images of shapes_val to evaluate on" in text
    assert "training for 12 iterations (4 epochs) of 2 inputs" in text
    rates = {line[:22].strip(): line.split() for line in text.splitlines()}
    assert float(rates["head.queries"][1]) == 1e-4
    assert float(rates["backbone, block 0"][-3]) == pytest.approx(1e-4 * 0.7**2 * 0.7**3, rel=1e-2)
    assert any("embeddings" in line and " 0 " in line for line in text.splitlines())
    assert re.search(r"^a training step takes about \d+\.\d GiB a process: .* 64 x 96 ", text, re.M)
    assert not (elsewhere / "run").exists()


def test_data_that_are_not_there_are_named(capsys):
    text = printed(capsys, *SHRINK, *SIZE)
    assert re.search(r"a training would end here: .*instances_train2017.json", text)
    assert "training for 73930 iterations of 2 inputs" in text


def test_weights_are_looked_for(capsys):
    def said(path):
        text = printed(capsys, *SHRINK, *SIZE, "MODEL.WEIGHTS", path)
        return re.search(r"^weights:\n(.*)$", text, re.M)[1]

    assert re.fullmatch("a training would end here: .*gone.pth .* does not exist", said("gone.pth"))
    assert said("https://somewhere/model.pth") == "https://somewhere/model.pth"
    assert said("''") == "none: random numbers"
