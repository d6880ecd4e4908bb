"""Backbones of transformers: small random models, which it builds and writes itself."""

import builtins
import json
import logging

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from torch import nn

from groupdetr_d2.analysis.step_memory import estimate_step
from groupdetr_d2.checkpoint import CheckpointError, GroupCheckpointer
from groupdetr_d2.engine.train_step import check_gradients
from groupdetr_d2.errors import UserError
from groupdetr_d2.modeling.backbone import padding_of
from groupdetr_d2.modeling.transformers_backbone import config_text, settle_transformers
from groupdetr_d2.modeling.vit import ViTPyramid
from tests.conftest import ROOT, SHRINK, build_config, make_image

transformers = pytest.importorskip("transformers", reason="transformers is an extra")
DINO = str(ROOT / "configs/DINO/dino_4scale_R_50_12ep.yaml")
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
STAGES = {"depths": [1, 1, 1, 1]}
CONFIGS = {
    "dinov2": lambda: transformers.Dinov2Config(**VIT, image_size=56, patch_size=14),
    "dinov3": lambda: transformers.DINOv3ViTConfig(
        **VIT, intermediate_size=64, image_size=64, patch_size=16, num_register_tokens=2
    ),
    "swin": lambda: transformers.SwinConfig(
        **STAGES, embed_dim=8, num_heads=[1, 2, 4, 8], window_size=3, image_size=96
    ),
    "convnext": lambda: transformers.ConvNextConfig(**STAGES, hidden_sizes=[8, 16, 24, 32]),
    "resnet": lambda: transformers.ResNetConfig(
        **STAGES, embedding_size=8, hidden_sizes=[8, 16, 24, 32], layer_type="basic"
    ),
}
MAPS = {
    "dinov2": {"stage1": 14, "stage2": 14},
    "dinov3": {"stage2": 16},
    "swin": {"stage2": 8, "stage3": 16, "stage4": 32},
    "convnext": {"stage1": 4, "stage4": 32},
    "resnet": {"stage3": 16, "stage4": 32},
}


def write(kind, folder):
    """Writes a model of random numbers with all of its maps; returns it."""
    config = CONFIGS[kind]()
    config.out_features = list(MAPS[kind])
    torch.manual_seed(0)
    model = transformers.AutoBackbone.from_config(config).eval()
    for name, p in model.named_parameters():
        nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.2)
    model.save_pretrained(folder)
    return model


def options(folder, maps, *opts):
    return [
        *(*SHRINK, "MODEL.BACKBONE.NAME", "build_transformers_backbone"),
        *("MODEL.TRANSFORMERS.NAME", str(folder), "MODEL.DETR.IN_FEATURES", list(maps), *opts),
    ]


class Detector(nn.Module):
    """A model that is a backbone alone."""

    def __init__(self, opts):
        super().__init__()
        self.backbone = build_backbone(build_config(DINO, opts))


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_features_equal_those_of_transformers(kind, tmp_path, caplog):
    theirs = write(kind, tmp_path)
    model = Detector(options(tmp_path, MAPS[kind]))
    checkpointer = GroupCheckpointer(model)
    with caplog.at_level(logging.INFO, "groupdetr_d2"):
        checkpointer.load(str(tmp_path), checkpointables=[])
    assert set(checkpointer.states.values()) == {"loaded"}
    shape = model.backbone.output_shape()
    assert {name: shape[name].stride for name in shape} == MAPS[kind]
    assert [shape[name].channels for name in shape] == theirs.channels
    assert padding_of(model.backbone) == (max(MAPS[kind].values()), 0)
    side = 4 * max(MAPS[kind].values())
    images = torch.randn(2, 3, side, 2 * side)
    found, expected = model.eval().backbone(images), theirs(images).feature_maps
    for (name, x), y in zip(found.items(), expected, strict=True):
        rounding = 1e-5 if kind == "resnet" else 0  # a frozen batch norm is a factor and a sum
        assert (x - y).abs().max() <= rounding * y.abs().max()
        assert x.shape[2] == side // MAPS[kind][name]
    sum(x.square().mean() for x in found.values()).backward()
    check_gradients(model, is_alone=False)  # what no map depends on is frozen
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(frozen) < len(list(model.parameters())) / 4
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_recomputation_changes_no_gradient(tmp_path):
    theirs = write("dinov2", tmp_path)
    images, gradients = torch.randn(1, 3, 56, 56), []
    for recompute in (False, True):
        opts = ["MODEL.DETR.RECOMPUTE", recompute]
        model = Detector(options(tmp_path, MAPS["dinov2"], *opts)).train()
        model.backbone.model.load_state_dict(theirs.state_dict())
        assert (
            any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == recompute
        )
        sum(x.square().mean() for x in model.backbone(images).values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_batch_norms_keep_their_statistics(tmp_path):
    write("resnet", tmp_path)
    model = Detector(options(tmp_path, MAPS["resnet"])).train()
    images = torch.randn(2, 3, 64, 64)
    first = model.backbone(images)["stage4"]
    torch.testing.assert_close(first[:1], model.backbone(images[:1])["stage4"])
    torch.testing.assert_close(first, model.eval().backbone(images)["stage4"])


@pytest.mark.parametrize(("kind", "device"), [("dinov2", "cuda"), ("dinov3", "cpu")])
def test_the_memory_of_a_step_is_planned(kind, device, tmp_path):
    """With tables of positions that no parameter is, and recomputation by transformers."""
    write(kind, tmp_path)
    extra = ("MODEL.DETR.EXTRA_LEVELS", 0, "MODEL.DETR.RECOMPUTE", True)
    cfg = build_config(DINO, options(tmp_path, ["p4", "p5"], *extra))
    planned = estimate_step(cfg, image_size=(112, 112), batch_size=1, device=device)
    assert planned.activations > 2**20


def test_a_plain_vit_with_a_pyramid_trains_in_a_detector(tmp_path):
    """A step of DINO with two groups on a DINOv2 reaches the embedding of its patches."""
    write("dinov2", tmp_path)
    extra = ("MODEL.DETR.EXTRA_LEVELS", 0, "MODEL.DETR.NUM_GROUPS", 2)
    cfg = build_config(DINO, options(tmp_path, ["p3", "p4", "p5", "p6"], *extra))
    model = build_model(cfg)
    assert isinstance(model.backbone, ViTPyramid)
    assert [x.stride for x in model.backbone.output_shape().values()] == [7, 14, 28, 56]
    assert padding_of(model.backbone) == (28, 0)
    GroupCheckpointer(model).load(str(tmp_path), checkpointables=[])
    batch = [make_image(84, width, 2, seed) for seed, width in enumerate((84, 112))]
    loss = sum(model(batch).values())
    loss.backward()
    assert loss.isfinite()
    check_gradients(model, is_alone=False)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    torch.optim.AdamW(model.backbone.parameters(), lr=1e-3).step()
    changed = {x for x, p in model.backbone.named_parameters() if not torch.equal(p, before[x])}
    assert "net.model.embeddings.position_embeddings" in changed
    assert any("layer.0" in x or "layers.0" in x for x in changed)
    assert len(model.eval()(batch)[0]["instances"]) > 0


def test_norms_that_weights_lack_are_said_to_be_new(tmp_path, caplog):
    """Swin's file has the norms of its own maps alone."""
    write("swin", tmp_path)
    model = Detector(options(tmp_path, ["stage1", "stage4"]))
    checkpointer = GroupCheckpointer(model)
    with caplog.at_level(logging.INFO, "groupdetr_d2"):
        checkpointer.load(str(tmp_path), checkpointables=[])
    missing = {name for name, x in checkpointer.states.items() if x == "missing"}
    norm = "backbone.model.hidden_states_norms.stage1"
    assert missing == {f"{norm}.weight", f"{norm}.bias"}
    assert f"{norm}.weight (1, all 1), {norm}.bias (1, all 0)" in caplog.text
    assert "left out" in caplog.text and "hidden_states_norms.stage2.weight" in caplog.text


def test_a_checkpoint_needs_neither_folder_nor_hub(tmp_path):
    write("convnext", tmp_path / "model")
    cfg = build_config(DINO, options(tmp_path / "model", ["stage3"]))
    settle_transformers(cfg)
    text = cfg.MODEL.TRANSFORMERS.CONFIG
    assert "id2label" not in text and '"model_type": "convnext"' in text
    (tmp_path / "model/config.json").unlink()
    copy = build_config(DINO, SHRINK)
    copy.merge_from_other_cfg(cfg.load_cfg(cfg.dump()))
    settle_transformers(copy)
    assert copy.MODEL.TRANSFORMERS.CONFIG == text
    assert build_backbone(copy).output_shape()["stage3"].channels == 24


def test_weights_of_another_kind_and_damaged_ones_are_named(tmp_path):
    write("convnext", tmp_path / "a")
    write("dinov3", tmp_path / "b")
    checkpointer = GroupCheckpointer(Detector(options(tmp_path / "a", ["stage3"])))
    with pytest.raises(CheckpointError, match="is a dinov3_vit, and .* a convnext"):
        checkpointer.load(str(tmp_path / "b"), checkpointables=[])
    (tmp_path / "a/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot read its weights") as caught:
        checkpointer.load(str(tmp_path / "a"), checkpointables=[])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, maps, said",
    [
        (None, ["stage1"], "no folder with a config.json.*Without a network"),
        ({"model_type": "dinov9"}, ["stage1"], "knows no model of type 'dinov9'"),
        ({"model_type": "bert"}, ["stage1"], "has stage1, but"),
        ({"model_type": "convnext"}, ["res5"], "returns stem, stage1, stage2, stage3, stage4, p2"),
        ({"model_type": "convnext"}, ["stage4", "stage1"], "list them from fine to coarse"),
        ({"model_type": "convnext"}, ["p3", "p5"], "neighbouring levels"),
        ("{", ["stage1"], "config.json cannot be read"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(content, maps, said, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    small = {**STAGES, "hidden_sizes": [8, 16, 24, 32]}
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(small | content)
        (tmp_path / "config.json").write_text(text)
    folder = "owner/name" if content is None else tmp_path
    with pytest.raises(UserError, match=said) as caught:
        build_model(build_config(DINO, options(folder, maps, "MODEL.DETR.EXTRA_LEVELS", 0)))
    assert "\n" not in str(caught.value)


def test_a_model_of_one_image_size_is_refused(tmp_path):
    transformers.HieraConfig(**STAGES, embed_dim=8, num_heads=[1, 2, 4, 8]).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="HieraBackbone takes no image of 224 x 448"):
        build_model(build_config(DINO, options(tmp_path, ["stage4"])))


def test_without_the_package_the_command_is_named(tmp_path, monkeypatch):
    CONFIGS["convnext"]().save_pretrained(tmp_path)
    own = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return own(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert config_text(str(tmp_path)).startswith("json {")
    with pytest.raises(UserError, match=r"pip install 'groupdetr_d2\[transformers\]'"):
        build_backbone(build_config(DINO, options(tmp_path, ["stage4"])))
    with pytest.raises(UserError, match="needs MODEL.TRANSFORMERS.NAME"):
        build_backbone(build_config(DINO, options("", ["stage4"])))
