"""Conversion of small files in the official names of Mask2Former, whole and damaged."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint.mask2former import CONVERTER
from groupdetr_d2.checkpoint.restoring import restore
from groupdetr_d2.commands import run as main
from groupdetr_d2.config import build_config
from tests.conftest import ROOT, SHRINK
from tests.golden_rule import load_case

YAML = str(ROOT / "configs/Mask2Former/mask2former_R_50_50ep.yaml")
SMALL = [*SHRINK, "MODEL.DETR.ENC_LAYERS", 2]  # layers as in the recorded names
INFIX = "sem_seg_head.pixel_decoder."
UNTRAINED = {f"{INFIX}mask_features.bias": torch.ones(32)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(build_config(YAML, SMALL)).eval()


@pytest.fixture
def official(model):
    """The model's tensors in the official names."""
    spec, _ = load_case("mask2former")
    keys = [key for key, _ in spec["state_dict"] if not key.startswith("criterion.")]
    names = CONVERTER.finish({CONVERTER.convert_key(key): key for key in keys}, {})
    tensors = {key: model.state_dict()[name] for name, key in names.items()}
    return {**tensors, "criterion.empty_weight": torch.ones(81)}


def older(key):
    return key.replace(INFIX, "sem_seg_head.").replace("query_feat", "static_query")


def doubled(key):
    return key.replace("pixel_decoder.", 2 * "pixel_decoder.")


LAYOUTS = {"later": str, "older": older, "doubled": doubled}


def convert(tmp_path, state, *opts, ending="pth"):
    """Writes an official file and converts it."""
    path, out = tmp_path / f"official.{ending}", tmp_path / "ours.pth"
    if ending == "pth":
        torch.save({"model": state, "iteration": 5}, path)
    else:
        arrays = {key: value.numpy() for key, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third party"}))
    small = [str(x) for x in (*SMALL, *opts)]
    main(["convert", "--source", "mask2former", str(path), str(out), *small])
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_every_layout_gives_the_same_model(tmp_path, model, official, layout, ending, capsys):
    state = {LAYOUTS[layout](key): value for key, value in official.items()}
    assert (f"{INFIX}layer_1.weight" in state) == (layout == "later")
    found = restore(convert(tmp_path, state, ending=ending)).model.state_dict()
    assert " 0 official keys without a home" in capsys.readouterr().out
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name
    assert found["head.predictor.class_heads.0.weight"].shape == (81, 32)  # and "no object"


@pytest.mark.parametrize("layout", ["older", "doubled"])
def test_two_layouts_in_one_file_are_refused(tmp_path, official, layout):
    """One of them is what a loader that knew neither left untrained."""
    state = {LAYOUTS[layout](key): value for key, value in official.items()} | UNTRAINED
    with pytest.raises(SystemExit, match="official.pth.*mask_features.bias.*another tensor"):
        convert(tmp_path, state)
    assert not (tmp_path / "ours.pth").exists()


@pytest.mark.parametrize("key", ["sem_seg_head.unheard_of", "unheard_of"])
def test_a_key_that_found_no_home_is_named(tmp_path, official, key, capsys):
    convert(tmp_path, {**official, key: torch.zeros(2)})
    assert f"no name for {key} (2,)" in capsys.readouterr().out


def test_another_number_of_layers_is_named(tmp_path, official, capsys):
    with pytest.raises(SystemExit, match="Empty: .*head.decoder.layers.4"):
        convert(tmp_path, official, "MODEL.DETR.DEC_LAYERS", 4)
    assert not (tmp_path / "ours.pth").exists()
    convert(tmp_path, official, "MODEL.DETR.DEC_LAYERS", 2)
    assert "no name for head.decoder.layers.3.norms.0.weight (32,)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [print, {"a": 1}, np.array([None])])
def test_a_pickle_of_anything_else_is_refused(tmp_path, value):
    (tmp_path / "official.pkl").write_bytes(pickle.dumps({"model": {"a": value}}))
    files = [str(tmp_path / "official.pkl"), str(tmp_path / "ours.pth")]
    with pytest.raises(SystemExit, match="official.pkl (is|cannot be)"):
        main(["convert", "--source", "mask2former", *files])
