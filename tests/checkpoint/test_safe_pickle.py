"""No file that is loaded can run code, wherever it is loaded."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr_d2 import Predictor
from groupdetr_d2.checkpoint import CheckpointError, GroupCheckpointer
from groupdetr_d2.checkpoint.safe_pickle import UnsafePickleError, load_pickle
from groupdetr_d2.commands import run as main
from groupdetr_d2.config import ConfigError, build_config
from groupdetr_d2.data.image_file import ImageReadError, read_bgr
from tests.conftest import small_model
from tests.engine.test_engine import tiny_run, train_net


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    """What exists if something was run."""
    return tmp_path / "was_here"


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return str(path)


def test_a_malicious_backbone_is_refused_and_not_run(tmp_path, trace):
    content = {"model": {"a": Malicious(trace)}, "__author__": "someone"}
    path = write(tmp_path / "backbone.pkl", content)
    with pytest.raises(UnsafePickleError, match="posix.mkdir.*--trust-checkpoint"):
        GroupCheckpointer(small_model()).load(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.pyth", "weights.safetensors"])
def test_a_malicious_checkpoint_is_refused_and_not_run(tmp_path, trace, name):
    path = tmp_path / name
    torch.save({"model": {"a": Malicious(trace)}}, path)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        GroupCheckpointer(small_model()).load(str(path))
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        Predictor(path)
    assert not trace.exists()


def test_a_malicious_official_checkpoint_is_refused_and_not_run(tmp_path, trace):
    path = tmp_path / "official.pth"
    torch.save({"model": {}, "args": Malicious(trace)}, path)
    with pytest.raises(SystemExit, match="cannot be read as an official checkpoint"):
        main(["convert", "--source", "dino", str(path), str(tmp_path / "out.pth")])
    assert not trace.exists()


def test_train_net_refuses_it_and_can_be_told_to_trust(tmp_path, trace):
    content = {"model": {"backbone.stem.conv1.weight": np.zeros((32, 3, 7, 7), np.float32)}}
    content |= {"__author__": "a colleague", "matching_heuristics": True}
    path = write(tmp_path / "backbone.pkl", content | {"note": Malicious(trace)})
    arguments = [*tiny_run(tmp_path, "MODEL.WEIGHTS", path, "SOLVER.MAX_ITER", 1)]
    done = train_net(*arguments, check=False)
    assert done.returncode == 1 and "posix.mkdir" in done.stdout + done.stderr
    assert not trace.exists()
    train_net("--trust-checkpoint", *arguments)
    assert trace.exists()


def test_a_yaml_that_calls_something_is_refused_and_not_run(tmp_path, trace):
    config = tmp_path / "config.yaml"
    config.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{trace}']\n")
    with pytest.raises(ConfigError, match="config.yaml is not plain yaml: could not"):
        build_config(str(config))
    with pytest.raises(ConfigError, match="(?s)config.yaml is not plain yaml.*line 1"):
        config.write_text("MODEL: {DETR: [}")
        build_config(str(config))
    assert not trace.exists()


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    """A file of some kilobytes can unfold to more than the memory."""
    path = tmp_path / "bomb.png"
    Image.new("RGB", (400, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(ImageReadError, match="bomb.png cannot be read.*decompression bomb"):
        read_bgr(path)


def test_arrays_in_containers_are_read(tmp_path):
    """As Python 2 and 3 and old and new numpy write them."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"a": array, "b": [np.float64(2.5), "text", {1, 2}], "c": OrderedDict(x=array[:, 1])}
    for protocol in (0, 2, 4, pickle.HIGHEST_PROTOCOL):
        path = tmp_path / "arrays.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        found = load_pickle(path)
        assert np.array_equal(found["a"], array) and found["b"][1:] == ["text", {1, 2}]
        assert np.array_equal(found["c"]["x"], array[:, 1])


def test_a_backbone_in_detectron2s_format_is_loaded(tmp_path):
    model = small_model()
    content = {k: x.numpy() + 1 for k, x in model.backbone.state_dict().items()}
    content = {"model": content, "__author__": "test", "matching_heuristics": True}
    GroupCheckpointer(model).load(write(tmp_path / "b.pkl", content))
    for key, value in model.backbone.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), content["model"][key])


def test_a_truncated_pickle_is_named(tmp_path):
    path = tmp_path / "half.pkl"
    path.write_bytes(pickle.dumps({"a": np.zeros(9)})[:-20])
    with pytest.raises(CheckpointError, match="half.pkl cannot be read"):
        GroupCheckpointer(small_model()).load(str(path))
