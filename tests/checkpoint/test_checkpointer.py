import logging

import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint import CheckpointError, CheckpointWriteError, GroupCheckpointer
from groupdetr_d2.checkpoint.files import check_exists
from groupdetr_d2.config import build_config
from tests.conftest import ROOT, SHRINK, make_batch, small_model


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


def test_a_torchvision_resnet_is_loaded_as_the_backbone(tmp_path):
    """All of it, and the features are those of torchvision's model."""
    from torchvision.models import resnet50
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    reference = resnet50().eval()
    torch.save(reference.state_dict(), tmp_path / "resnet50.pth")
    config = "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml"
    widths = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    widths += ["MODEL.RESNETS.WIDTH_PER_GROUP", 64]
    model = build_model(build_config(str(ROOT / config), [*SHRINK, *widths])).eval()
    GroupCheckpointer(model).load(str(tmp_path / "resnet50.pth"))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = create_feature_extractor(reference, ["layer4"])(image)["layer4"]
        found = model.backbone(image)["res5"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


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
    assert "NOTHING of the checkpoint fits backbone.*" in caplog.text


class Names:
    """Stands for a run's information."""

    def __init__(self, classes):
        self.classes = classes

    def state_dict(self):
        return {"classes": self.classes}


@pytest.mark.parametrize(
    "config", ["configs/DINO/dino_4scale_R_50_12ep.yaml", "configs/DN-DETR/dn_detr_R_50_12ep.yaml"]
)
def test_rows_of_classes_are_matched_by_name(tmp_path, caplog, config):
    """In the heads, the first stage and the label embedding; a new class keeps its own values."""
    old, new = ["cat", "dog", "bird", "cow"], ["Dog", "fish", "cat"]
    source = small_model(2, "MODEL.DETR.NUM_CLASSES", 4, config=config)
    GroupCheckpointer(source, str(tmp_path), run=Names(old)).save("model")
    target = small_model(2, "MODEL.DETR.NUM_CLASSES", 3, config=config)
    own = {name: value.clone() for name, value in target.state_dict().items()}
    checkpointer = GroupCheckpointer(target, run=Names(new))
    checkpointer.load(str(tmp_path / "model.pth"), checkpointables=[])
    assert "rows of 2 are matched by name, new are fish" in caplog.text
    theirs, ours = source.state_dict(), target.state_dict()
    seen = 0
    for name in ours:
        if "class_head" in name or "label_embedding" in name:
            axis = 1 if "queries.heads" in name else 0
            before, after = theirs[name].unbind(axis), ours[name].unbind(axis)
            assert torch.equal(after[0], before[1]) and torch.equal(after[2], before[0]), name
            assert torch.equal(after[1], own[name].unbind(axis)[1]), name
            if "label_embedding" in name:
                assert torch.equal(after[3], before[4])
            seen += 1
    assert seen == (5 if "dino" in config else 3)


MASKS = [
    *("MODEL.SMALL_RESNET.CHANNELS", [32, 32, 64, 96, 128]),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.DETR.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
]


@pytest.mark.parametrize(
    "new", [["Dog", "fish", "cat"], ["cow", "bird", "dog", "cat"], ["bird"], ["fish", "ant"]]
)
def test_the_row_of_no_object_is_the_checkpoints(tmp_path, new):
    """It is the last one of Mask2Former's head; outputs of classes that are known stay."""
    old = ["cat", "dog", "bird", "cow"]
    config = "configs/Mask2Former/mask2former_R_50_12ep.yaml"
    source, target = (
        small_model(2, *MASKS, "MODEL.DETR.NUM_CLASSES", len(x), config=config).eval()
        for x in (old, new)
    )
    with torch.no_grad():
        source.head.predictor.class_heads[0].bias.normal_()
    GroupCheckpointer(source, str(tmp_path), run=Names(old)).save("model")
    own = target.head.predictor.class_heads[0].weight.clone()
    loader = GroupCheckpointer(target, run=Names(new))
    loader.load(str(tmp_path / "model.pth"), checkpointables=[])
    places = [old.index(x.lower()) if x.lower() in old else None for x in new] + [len(old)]
    with torch.no_grad():
        before, after = (model.predict(make_batch(), model.groups) for model in (source, target))
    for i, place in enumerate(places):
        if place is None:
            assert torch.equal(target.head.predictor.class_heads[0].weight[i], own[i])
        else:
            torch.testing.assert_close(after.logits[..., i], before.logits[..., place])
    assert torch.equal(after.embeddings, before.embeddings)


def test_the_same_number_of_other_classes_is_noticed(tmp_path):
    """Loading by shape alone would silently make cats of dogs."""
    source, target = (small_model(1, "MODEL.DETR.NUM_CLASSES", 2) for _ in range(2))
    GroupCheckpointer(source, str(tmp_path), run=Names(["cat", "dog"])).save("model")
    with torch.no_grad():
        source.head.predictor.class_heads[0].weight[0] += 1
    GroupCheckpointer(source, str(tmp_path), run=Names(["cat", "dog"])).save("model")
    loader = GroupCheckpointer(target, run=Names(["dog", "cat"]))
    loader.load(str(tmp_path / "model.pth"), checkpointables=[])
    expected = source.head.predictor.class_heads[0].weight.flip(0)
    assert torch.equal(target.head.predictor.class_heads[0].weight, expected)


def test_what_was_loaded_is_a_table(tmp_path, caplog):
    """Without names, heads of other sizes start anew, and that is said."""
    caplog.set_level(logging.INFO)
    path = save(small_model(2), tmp_path)
    target = small_model(3, "MODEL.DETR.NUM_CLASSES", 5)
    GroupCheckpointer(target).load(path)
    rows = {line.split()[0]: line.split()[1:] for line in caplog.text.splitlines() if line}
    tensors = len(list(target.backbone.state_dict()))
    assert rows["backbone"] == [str(tensors)]
    others = len(list(target.head.queries.state_dict())) - 1
    assert rows["head.queries"] == [str(others), "1"]  # the bank is resized
    assert rows["head.predictor"][-1] == "2"
    assert "2 tensors start from random weights: head.predictor.class_heads.0.weight" in caplog.text
    caplog.clear()
    GroupCheckpointer(small_model(2)).load(path)
    assert "all " in caplog.text and "random" not in caplog.text


def test_a_checkpoint_without_a_transformer_is_said_loudly(tmp_path, caplog):
    model = small_model()
    state = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    torch.save({"model": state}, tmp_path / "backbone.pth")
    GroupCheckpointer(model).load(str(tmp_path / "backbone.pth"))
    assert "the transformer starts from random weights, as it should with a back" in caplog.text
    torch.save({"model": state | {"transformer.x": torch.zeros(3)}}, tmp_path / "other.pth")
    GroupCheckpointer(model).load(str(tmp_path / "other.pth"))
    assert "are its names converted?" in caplog.text


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="gone.pth .MODEL.WEIGHTS. does not exist$"):
        GroupCheckpointer(small_model()).load(str(tmp_path / "gone.pth"))


def test_a_missing_checkpoint_of_a_known_training_is_answered_with_its_command(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where nobody has trained
    expected = "does not exist: .*--config-file configs/quick_start/group_petr_cubes.yaml makes it"
    with pytest.raises(CheckpointError, match=expected):
        check_exists("output/group_petr_cubes/model_final.pth")
    with pytest.raises(CheckpointError, match=expected):
        check_exists("./output/group_petr_cubes/model_final.pth")
    with pytest.raises(CheckpointError, match="does not exist$"):
        check_exists("output/group_petr_cubes/modle_final.pth")
    for fine in ("", "https://somewhere/model.pth", str(tmp_path)):
        check_exists(fine)
