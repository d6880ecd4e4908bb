"""Backbones of timm in folders as the hub has them: timm's config.json and the whole classifier."""

import json
import logging

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from safetensors.torch import save_file
from torch import nn

from groupdetr_d2.checkpoint import CheckpointError, GroupCheckpointer
from groupdetr_d2.engine.train_step import check_gradients
from groupdetr_d2.errors import UserError
from groupdetr_d2.modeling.backbone import padding_of
from groupdetr_d2.modeling.transformers_backbone import settle_transformers
from tests.conftest import build_config, hide_timm, make_image
from tests.modeling.test_transformers_backbone import DINO, Detector, options

timm = pytest.importorskip("timm", reason="timm is an extra")


def write(architecture, folder):
    """Writes a classifier of random numbers as a folder of the hub; returns it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=7).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and "running_var" not in name:
            nn.init.normal_(value, mean=float("norm" in name and "weight" in name), std=0.2)
    save_file(model.state_dict(), folder / "model.safetensors")
    content = {"architecture": architecture, "num_classes": 7, "pretrained_cfg": {"mean": [0.5]}}
    (folder / "config.json").write_text(json.dumps(content))
    return model


@pytest.mark.parametrize(
    "architecture, maps, stride, side",
    [
        ("test_resnet", ["layer3", "layer4"], 32, 96),
        ("test_convnext", ["stages.3"], 32, 96),
        ("test_vit", ["blocks.5"], 16, 160),
    ],
)
def test_the_last_map_is_what_the_classifier_sees(
    architecture, maps, stride, side, tmp_path, caplog
):
    theirs = write(architecture, tmp_path)
    model = Detector(options(tmp_path, maps))
    checkpointer = GroupCheckpointer(model)
    with caplog.at_level(logging.INFO, "groupdetr_d2"):
        checkpointer.load(str(tmp_path), checkpointables=[])
    assert set(checkpointer.states.values()) == {"loaded"}
    assert f"has a {architecture} of timm" in caplog.text
    assert padding_of(model.backbone) == (stride, 0)
    images = torch.randn(2, 3, side, side)
    found = model.eval().backbone(images)
    assert list(found) == maps
    expected = theirs.forward_intermediates(images, norm=False, intermediates_only=True)[-1]
    torch.testing.assert_close(found[maps[-1]], expected)
    wide = model.backbone(torch.randn(1, 3, side, 2 * side))[maps[-1]]
    assert wide.shape[2:] == (side // stride, 2 * side // stride)
    sum(x.square().mean() for x in found.values()).backward()
    check_gradients(model, is_alone=False)


def test_batch_norms_keep_their_statistics(tmp_path):
    write("test_resnet", tmp_path)
    model = Detector(options(tmp_path, ["layer4"])).train()
    images = torch.randn(2, 3, 64, 64)
    first = model.backbone(images)["layer4"]
    assert torch.equal(first, model.backbone(images)["layer4"])
    assert torch.equal(first, model.eval().backbone(images)["layer4"])


def test_channels_come_first(tmp_path):
    """Swin's maps have their channels last in timm."""
    (tmp_path / "config.json").write_text('{"architecture": "swin_tiny_patch4_window7_224"}')
    backbone = build_backbone(build_config(DINO, options(tmp_path, ["layers.1"])))
    shape = backbone.output_shape()["layers.1"]
    assert (shape.channels, shape.stride) == (192, 8)
    assert backbone.eval()(torch.zeros(1, 3, 64, 96))["layers.1"].shape == (1, 192, 8, 12)


def test_a_detector_trains_on_a_vit_of_timm(tmp_path):
    write("test_vit", tmp_path / "model")
    extra = ("MODEL.DETR.EXTRA_LEVELS", 0, "MODEL.DETR.NUM_GROUPS", 2)
    cfg = build_config(DINO, options(tmp_path / "model", ["p3", "p4", "p5", "p6"], *extra))
    settle_transformers(cfg)
    (tmp_path / "model/config.json").unlink()  # a checkpoint's configuration is enough
    model = build_model(cfg)
    batch = [make_image(84, width, 2, seed) for seed, width in enumerate((84, 112))]
    loss = sum(model(batch).values())
    loss.backward()
    assert loss.isfinite()
    check_gradients(model, is_alone=False)


def test_weights_of_another_architecture_and_absent_ones_are_named(tmp_path):
    write("test_vit", tmp_path / "a")
    write("test_resnet", tmp_path / "b")
    checkpointer = GroupCheckpointer(Detector(options(tmp_path / "a", ["blocks.5"])))
    with pytest.raises(CheckpointError, match="is a test_resnet of timm, and .* a test_vit of ti"):
        checkpointer.load(str(tmp_path / "b"), checkpointables=[])
    (tmp_path / "a/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="timm cannot read .*model.safetensors"):
        checkpointer.load(str(tmp_path / "a"), checkpointables=[])
    (tmp_path / "a/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors"):
        checkpointer.load(str(tmp_path / "a"), checkpointables=[])


def test_timm_is_named_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"architecture": "test_vit"}')
    hide_timm(monkeypatch)
    with pytest.raises(UserError, match=r"test_vit is a model of timm .*groupdetr_d2\[timm\]"):
        build_backbone(build_config(DINO, options(tmp_path, ["p4"])))
