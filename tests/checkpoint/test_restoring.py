"""The one way from a checkpoint's file to a model."""

import json

import pytest
import torch

from groupdetr_d2.checkpoint import CheckpointError, files, restoring
from groupdetr_d2.checkpoint.restoring import restore
from groupdetr_d2.checkpoint.thresholds import find_threshold, store_threshold
from tests.inference.test_predict import make_checkpoint


def test_a_file_is_read_once(tmp_path, monkeypatch):
    weights, reads = make_checkpoint(tmp_path), []
    load = torch.load
    monkeypatch.setattr(files.torch, "load", lambda *a, **k: reads.append(a) or load(*a, **k))
    restored = restore(weights, ["MODEL.DEVICE", "cpu"])
    assert len(reads) == 1
    state = load(weights)["model"]
    assert all(torch.equal(x, state[name]) for name, x in restored.model.state_dict().items())
    assert not restored.model.training and restored.cfg.MODEL.DEVICE == "cpu"


def test_the_configuration_is_settled_before_the_model_is_built(tmp_path):
    seen = []
    restore(
        make_checkpoint(tmp_path),
        settle=lambda cfg: seen.append(setattr(cfg.MODEL, "DEVICE", "cpu")),
    )
    assert len(seen) == 1


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="gone.pth does not exist"):
        restore(tmp_path / "gone.pth")
    torch.save({"model": {}}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="bare.pth does not say which configuration"):
        restoring.read_checkpoint(tmp_path / "bare.pth")


def test_the_threshold_is_that_of_the_checkpoints_own_evaluation(tmp_path):
    content = {"iteration": 7, "run": {"threshold": 0.2}}
    weights = tmp_path / "model_final.pth"
    assert find_threshold(weights, content) == 0.2  # of the evaluation before
    store_threshold(tmp_path, 4, 0.3)
    store_threshold(tmp_path, 8, 0.4)
    assert find_threshold(weights, content) == 0.4
    assert find_threshold(weights, {"run": {}}) is None
    (tmp_path / "thresholds.json").write_text("{")
    assert find_threshold(weights, content) == 0.2
    (tmp_path / "thresholds.json").write_text(json.dumps({"8": "high"}))
    assert find_threshold(weights, content) == 0.2
