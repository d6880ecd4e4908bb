"""Official PETR checkpoints, of both layouts of keys, and VoVNet files of other origin."""

import re
from argparse import Namespace

import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.checkpoint import petr as converters
from groupdetr_d2.checkpoint.converting import SOURCES, convert_file
from groupdetr_d2.config import build_config
from tests.conftest import ROOT, small_config
from tests.golden_rule import load_case
from tests.golden_rule_3d import make_state_dict

KINDS = {"petr": converters.CONVERTER, "petrv2": converters.CONVERTER_V2}


@pytest.fixture(scope="module", params=list(KINDS))
def official(request):
    spec, _ = load_case(request.param)
    return request.param, make_state_dict(spec)


def old_names(key):
    """The names of before March 2022."""
    key = re.sub(r"\.attentions\.0\.", ".self_attn.", key)
    key = re.sub(r"\.attentions\.1\.", ".multihead_attn.", key)
    return key.replace(".decoder.post_norm.", ".decoder.norm.")


def test_old_names_convert_to_the_same(official):
    name, state = official
    sizes = {"num_queries": 20, "num_classes": 10}
    expected, left = KINDS[name].convert_state_dict(state, **sizes)
    renamed = {old_names(key): value for key, value in state.items()}
    found, left_of_old = KINDS[name].convert_state_dict(renamed, **sizes)
    assert not left and not left_of_old and expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_the_yaw_is_turned_around(official):
    """Sine and cosine of the usual yaw are minus the cosine and minus the sine of the old one."""
    name, state = official
    converted, _ = KINDS[name].convert_state_dict(state, num_queries=20, num_classes=10)
    last = {"petr": ("layers.2", "4", 6), "petrv2": ("heads.3.layers.1", "task_heads.3.2", 0)}
    ours, theirs, first = last[name]
    found = converted[f"head.predictor.box_heads.0.{ours}.bias"]
    old = state[f"pts_bbox_head.reg_branches.0.{theirs}.bias"]
    assert found[first] == -old[first + 1] and found[first + 1] == -old[first]
    untouched = [i for i in range(len(old)) if i not in (first, first + 1)]
    assert torch.equal(found[untouched], old[untouched])


@pytest.mark.parametrize("prefix", ["", "img_backbone.", "backbone.bottom_up."])
def test_backbones_of_any_origin(official, prefix):
    """PETR's, vovnet-detectron2's and DD3D's files name the same tensors."""
    _, state = official
    own = "img_backbone."
    state = {prefix + k.removeprefix(own): v for k, v in state.items() if k.startswith(own)}
    converted, left = converters.BACKBONE_CONVERTER.convert_state_dict(state)
    cfg = small_config("configs/PETR/petr_V2_99_800x320_24ep.yaml")
    cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_vovnet_backbone", "MODEL.VOVNET.STEM_CHANNELS", 64),
            *("MODEL.VOVNET.CONV_CHANNELS", [128, 160, 192, 224], "MODEL.VOVNET.NUM_LAYERS", 5),
            *("MODEL.VOVNET.OUT_CHANNELS", [256, 512, 768, 1024]),
            *("MODEL.VOVNET.BLOCKS", [1, 3, 9, 3], "MODEL.DETR.IN_FEATURES", ["stage5"]),
        ]
    )
    own = {k for k in build_model(cfg).state_dict() if k.startswith("backbone.")}
    assert not left and converted.keys() == own


def test_a_file_of_mmcv_is_converted_and_named_weights_are_warned_of(official, tmp_path, capsys):
    """Also that of a backbone that has seen validation scenes, by its name."""
    name, state = official
    file = tmp_path / "dd3d_det_final.pth"
    torch.save({"meta": {"epoch": 24}, "state_dict": state}, file)
    opts = ["MODEL.DETR.DEC_LAYERS", "3", "MODEL.DETR.NUM_OBJECT_QUERIES", "20"]
    out = tmp_path / "ours.pth"
    args = Namespace(source=name, config_file="", input=str(file), output=str(out), opts=opts)
    convert_file(args)
    shown = capsys.readouterr()
    assert "validation scenes" in shown.err and "0 official keys without a home" in shown.out
    assert converters.validation_warning("fcos3d_vovnet.pth") == ""


def test_a_backbone_alone_is_converted_and_begins_a_training(official, tmp_path, capsys):
    """From a file of the whole model, whose other tensors are named."""
    _, state = official
    file, out = tmp_path / "whole.pth", tmp_path / "backbone.pth"
    torch.save({"state_dict": state}, file)
    args = Namespace(source="vovnet", config_file="", input=str(file), output=str(out), opts=[])
    convert_file(args)
    said = capsys.readouterr().out
    assert "no name for pts_bbox_head" in said and "groups" not in said
    opts = [*("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(out), "MODEL.DETR.DEC_LAYERS", 1)]
    model = build_model(build_config(str(ROOT / "configs/PETR/petr_V2_99_800x320_24ep.yaml"), opts))
    GroupCheckpointer(model).load(str(out))
    only = {key: value for key, value in state.items() if key.startswith("img_backbone.")}
    expected, _ = converters.BACKBONE_CONVERTER.convert_state_dict(only)
    found = model.state_dict()
    assert len(expected) > 300 and all(torch.equal(found[k], x) for k, x in expected.items())


def test_every_source_has_a_yaml():
    assert {"petr", "petrv2", "vovnet"} <= SOURCES.keys()
