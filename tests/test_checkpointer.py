import logging

import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint import CheckpointError, CheckpointWriteError, GroupCheckpointer
from groupdetr_d2.engine.setup import build_config

from .conftest import ROOT, SHRINK, make_batch, small_model


def save(model, folder, name="model"):
    GroupCheckpointer(model, str(folder)).save(name)
    return str(folder / f"{name}.pth")


@pytest.fixture(autouse=True)
def propagate(monkeypatch):
    """Detectron2's logger set-up stops messages from reaching pytest."""
    monkeypatch.setattr(logging.getLogger("groupdetr_d2"), "propagate", True)


@pytest.mark.parametrize("num_groups, num_queries", [(1, 6), (5, 6), (3, 4), (2, 9)])
def test_other_k_or_n_is_resized_per_group_and_said_so(tmp_path, caplog, num_groups, num_queries):
    source = small_model(3)
    target = small_model(num_groups, "MODEL.DETR.NUM_OBJECT_QUERIES", num_queries)
    GroupCheckpointer(target).load(save(source, tmp_path))
    assert "resized group by group" in caplog.text
    old = source.head.queries.bank.weight.view(3, 6, -1)
    new = target.head.queries.bank.weight.view(num_groups, num_queries, -1)
    groups, queries = min(3, num_groups), min(6, num_queries)
    assert torch.equal(new[:groups, :queries], old[:groups, :queries])
    assert len(new.flatten(0, 1).unique(dim=0)) == num_groups * num_queries  # no two train alike


def test_evaluation_does_not_change_when_groups_are_taken_away(tmp_path):
    source, target = small_model(3).eval(), small_model(1).eval()
    GroupCheckpointer(target).load(save(source, tmp_path))
    with torch.no_grad():
        expected, found = source(make_batch()), target(make_batch())
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a["instances"].scores, b["instances"].scores)


@pytest.mark.parametrize("content", ["truncated", "text", "object"])
def test_unreadable_checkpoints_are_named_with_a_remedy(tmp_path, content):
    path = save(small_model(), tmp_path)
    if content == "truncated":
        with open(path, "r+b") as file:
            file.truncate(2000)
    elif content == "text":
        (tmp_path / "model.pth").write_text("not a checkpoint")
    else:
        torch.save({"model": {}, "object": CheckpointError("any class")}, path)
    with pytest.raises(CheckpointError, match="model.pth cannot be read.*Copy it again"):
        GroupCheckpointer(small_model()).load(path)


def test_a_swin_classifier_is_loaded_as_the_backbone(tmp_path):
    """In Microsoft's names; only the norms of the outputs are new."""
    swin = [
        *("MODEL.BACKBONE.NAME", "build_swin_backbone", "MODEL.DETR.IN_FEATURES", ["p1", "p2"]),
        *("MODEL.SWIN.OUT_FEATURES", ["p1", "p2"]),
    ]
    config = "configs/DINO/dino_4scale_Swin_L_12ep.yaml"
    model = build_model(build_config(str(ROOT / config), [*SHRINK, *swin]))
    state = {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in model.backbone.state_dict().items()
        if not key.startswith("norm")
    }
    classifier = state | {"norm.weight": torch.zeros(3), "head.weight": torch.zeros(3)}
    classifier["layers.0.blocks.0.attn_mask"] = torch.zeros(3)
    torch.save({"model": classifier}, tmp_path / "swin.pth")
    incompatible = GroupCheckpointer(model).load(str(tmp_path / "swin.pth"))
    assert incompatible == {}
    for key, value in state.items():
        assert torch.equal(model.backbone.state_dict()[key], value), key


def test_an_interrupted_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    model = small_model()
    path = save(model, tmp_path)
    before = open(path, "rb").read()

    def fail(data, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointWriteError, match="No space left.*KEEP_CHECKPOINTS"):
        save(model, tmp_path)
    assert open(path, "rb").read() == before
    assert not list(tmp_path.glob("*.unfinished"))


def test_weights_that_fit_nowhere_are_said_loudly(tmp_path, caplog):
    torch.save({"model": {"resnet.conv1.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    GroupCheckpointer(small_model()).load(str(tmp_path / "other.pth"))
    assert "nothing of the checkpoint fits backbone.*" in caplog.text


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="gone.pth .MODEL.WEIGHTS. does not exist"):
        GroupCheckpointer(small_model()).load(str(tmp_path / "gone.pth"))
