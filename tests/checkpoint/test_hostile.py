"""Checkpoints that are no checkpoints, ask for too much, or grow: one message, in no time."""

import pickle
import time
import zipfile

import numpy as np
import pytest
import torch
import yaml

from groupdetr_d2.checkpoint import CheckpointError, GroupCheckpointer
from groupdetr_d2.checkpoint.checkpointer import read_content
from groupdetr_d2.checkpoint.restoring import restore
from groupdetr_d2.checkpoint.safe_pickle import UnsafePickleError, load_pickle
from groupdetr_d2.commands import run as main
from groupdetr_d2.errors import UserError
from tests.conftest import small_model
from tests.inference.test_predict import make_checkpoint

TENSOR = torch.zeros(2)
STRUCTURES = {
    "none": None,
    "number": 5,
    "text": "hello",
    "list": [1],
    "tensor": TENSOR,
    "numbers as names": {1: TENSOR},
    "model is none": {"model": None},
    "model is a list": {"model": [TENSOR]},
    "model of numbers": {"model": {"a": 1}},
    "model state is a number": {"model": {"model_state": 5}},
    "run is none": {"model": {"a": TENSOR}, "run": None},
    "run is empty": {"model": {"a": TENSOR}, "run": {}},
    "configuration is a number": {"model": {"a": TENSOR}, "run": {"config": 5, "classes": []}},
    "configuration is no yaml": {"model": {"a": TENSOR}, "run": {"config": "{[", "classes": []}},
    "configuration is a list": {"model": {"a": TENSOR}, "run": {"config": "[1]", "classes": []}},
    "another project's": {"model": {"a": TENSOR}, "run": {"config": "MODEL: {}", "classes": []}},
    "classes are numbers": {"model": {"a": TENSOR}, "run": {"config": "A: 1", "classes": [1]}},
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_another_structure_is_named(tmp_path, name, ending):
    path = tmp_path / f"file.{ending}"
    if ending == "pth":
        torch.save(STRUCTURES[name], path)
    elif "tensor" in str(STRUCTURES[name]):
        pytest.skip("tensors are not in such pickles")
    else:
        path.write_bytes(pickle.dumps(STRUCTURES[name]))
    with pytest.raises(UserError, match=f"file.{ending}"):
        restore(path)


CONFIGURATIONS = {
    "MODEL.DETR.NHEADS": 0,
    "MODEL.DETR.HIDDEN_DIM": 130,
    "MODEL.PIXEL_MEAN": [1.0, 2.0],
    "TEST.DETECTIONS_PER_IMAGE": -1,
    "MODEL.DETR.NUM_OBJECT_QUERIES": 10**9,
    "MODEL.DETR.NUM_GROUPS": 10**9,
    "MODEL.DETR.NUM_CLASSES": 10**9,
    "MODEL.DETR.DEC_LAYERS": 10**6,
    "MODEL.DETR.ENC_LAYERS": 900,
    "MODEL.DETR.DIM_FEEDFORWARD": 900_000,
    "INPUT.MIN_SIZE_TEST": 10**6,
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.BACKBONE.NAME": "nope",
    "MODEL.DETR.IN_FEATURES": ["res9"],
    "MODEL.FOO": 1,
    "MODEL.DETR.DROPOUT": "much",
    "MODEL.EMA": None,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = make_checkpoint(tmp_path_factory.mktemp("sound"))
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("key", CONFIGURATIONS)
def test_a_configuration_that_asks_for_the_impossible_is_refused_at_once(tmp_path, sound, key):
    nested = yaml.safe_load(sound["run"]["config"])
    *sections, last = key.split(".")
    node = nested
    for section in sections:
        node = node[section]
    node[last] = CONFIGURATIONS[key]
    path = tmp_path / "asks.pth"
    torch.save({**sound, "run": {**sound["run"], "config": yaml.safe_dump(nested)}}, path)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=f"(?s)asks.pth.*{last}"):
        restore(path, ["MODEL.DEVICE", "cpu"])
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("change", ["missing", "flat", "nan", "none"])
def test_a_model_that_would_stay_random_is_not_used(tmp_path, sound, change):
    model = dict(sound["model"])
    name = "head.queries.bank.weight"
    changed = {"flat": model[name].flatten(), "nan": model[name] * float("nan")}
    if change == "missing":
        del model["backbone.stem.conv1.weight"]
    elif change == "none":
        model = {}
    else:
        model[name] = changed[change]
    path = tmp_path / "random.pth"
    torch.save({**sound, "model": model}, path)
    words = {"nan": f"NaN or infinite, {name}", "none": "has no tensors", "flat": name}
    for command in (["predict", "--weights"], ["strip"], ["export", "--weights"]):
        rest = (
            [str(tmp_path / "x.onnx")] if command == ["strip"] else ["--out", str(tmp_path / "o")]
        )
        rest += [str(tmp_path)] if command[0] == "predict" else []
        (tmp_path / "a.png").touch()
        with pytest.raises(SystemExit) as end:
            main([*command, str(path), *rest])
        assert "random.pth" in str(end.value)
        assert words.get(change, "backbone.stem.conv1.weight") in str(end.value)


def test_a_zip_that_grows_is_refused_at_once(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", b"\0" * 2**28)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="bomb.pth cannot be read.*would grow to 256 MiB"):
        read_content(str(path))
    assert time.monotonic() - start < 1


class Call:
    """Pickles a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


PICKLES = {
    "terabytes": pickle.dumps(Call(bytearray, 10**13)),
    "codec": pickle.dumps(Call(__import__("codecs").encode, "a", "base64")),
    "array": pickle.dumps(Call(np.core.multiarray._reconstruct, np.ndarray, (10**12,), b"b")),
    "memory of objects": b"\x80\x04K\x01r\xf0\xff\xff\xff.",
    "extension": b"\x80\x02\x82\x01.",
    "half": pickle.dumps(list(range(100)))[:40],
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_ask_for_memory_or_codecs_are_refused(tmp_path, name):
    path = tmp_path / "asks.pkl"
    path.write_bytes(PICKLES[name])
    start = time.monotonic()
    with pytest.raises(UserError, match="asks.pkl"):
        read_content(str(path))
    assert time.monotonic() - start < 2
    if name != "half":
        with pytest.raises(UnsafePickleError):
            load_pickle(path)


@pytest.mark.parametrize("note", [b"\xff\xfe\x00", b"../outside.pth", b"", b"a/b", "folder"])
def test_a_damaged_note_of_the_last_checkpoint_is_passed_over(tmp_path, note, package_log):
    model = small_model()
    checkpointer = GroupCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    if note == "folder":
        (tmp_path / "last_checkpoint").unlink()
        (tmp_path / "last_checkpoint").mkdir()
    else:
        (tmp_path / "last_checkpoint").write_bytes(note)
    (tmp_path / "model_0000009.pth").mkdir()  # no checkpoint either
    (tmp_path.parent / "outside.pth").touch()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert "the newest checkpoint is taken" in package_log.text


OFFICIAL = {
    "no dictionary": 5,
    "model is none": {"model": None},
    "number as a name": {5: TENSOR},
    "value is a number": {"class_embed.weight": 1},
    "value is a text": {"query_embed.weight": "a"},
    "bank without axes": {"query_embed.weight": torch.tensor(1.0)},
    "half of a triple": {"model.decoder.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4)},
}


@pytest.mark.parametrize("source", ["conditional-detr", "hf-deformable-detr", "mask2former"])
@pytest.mark.parametrize("name", [*OFFICIAL, "flipped"])
def test_what_is_no_official_checkpoint_is_not_converted(tmp_path, name, source):
    path, out = tmp_path / "official.pth", tmp_path / "out.pth"
    torch.save(OFFICIAL.get(name, {"a": torch.ones(1000)}), path)
    if name == "flipped":
        content = bytearray(path.read_bytes())
        content[content.index(torch.ones(20).numpy().tobytes()) + 40] ^= 255
        path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        main(["convert", "--source", source, str(path), str(out)])
    assert "official.pth" in str(end.value) and not out.exists()


@pytest.mark.parametrize("mean", [5, {}, {"model": 5}, {"model": {"a": 1}}])
def test_a_running_mean_that_is_none_is_named(tmp_path, sound, mean):
    path = tmp_path / "mean.pth"
    torch.save({**sound, "mean_weights": mean}, path)
    with pytest.raises(CheckpointError, match="mean.pth is no checkpoint that can be used"):
        restore(path)


def test_class_names_of_another_number_are_named(tmp_path, sound):
    path = tmp_path / "names.pth"
    torch.save({**sound, "run": {**sound["run"], "classes": ["cat"]}}, path)
    with pytest.raises(CheckpointError, match="has 1 class names, and MODEL.DETR.NUM_CLASSES is 2"):
        restore(path)
