"""Models of Objects365 become models of COCO: rows by the table, in all groups alike."""

import json

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.checkpoint.class_fitting import fit_file
from groupdetr_d2.checkpoint.objects365_to_coco import NEAR, SAME, SOURCES, SYNONYM
from groupdetr_d2.checkpoint.restoring import restore
from groupdetr_d2.checkpoint.run_info import RunInfo
from groupdetr_d2.commands import run as main
from groupdetr_d2.errors import UserError
from tests.conftest import randomize_heads, small_config
from tests.data.objects365_names import NAMES

CONFIGS = {
    "dino": "configs/DINO/dino_4scale_R_50_12ep.yaml",
    "detr": "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml",
    "petr": "configs/quick_start/petr_cubes.yaml",
    "objectness": "configs/Deformable-DETR/deformable_detr_two_stage_R_50_50ep.yaml",
}
COCO = MetadataCatalog.get("coco_2017_val").thing_classes


def save(folder, kind, classes=NAMES, num_groups=2, *, has_mean=False):
    """A checkpoint of a small model; the tensors of it that are to be used."""
    sets = ["DATASETS.TRAIN", (), "DATASETS.TEST", ()]
    number = ["MODEL.DETR.NUM_CLASSES", len(classes)]
    cfg = small_config(CONFIGS[kind], num_groups, *number, *sets)
    torch.manual_seed(0)
    model = build_model(cfg)
    randomize_heads(model)
    with torch.no_grad():  # whose rows are alike at the start
        for name, value in model.named_parameters():
            if "class_head" in name:
                value.normal_()
    run = RunInfo(cfg)
    run.classes = list(classes)
    used = model.state_dict()
    more = {}
    if has_mean:
        used = {k: v + 1 if v.is_floating_point() else v for k, v in used.items()}
        more = {"mean_weights": {"model": used, "updates": 3}}
    GroupCheckpointer(model, str(folder), run=run).save("model", **more)
    return str(folder / "model.pth"), used


def rows_of(name, tensors):
    """The rows of classes of a tensor, (C, ...) whatever its groups."""
    return tensors[name].transpose(0, 1) if "queries.heads" in name else tensors[name]


def test_the_table_names_the_classes_that_it_takes():
    assert list(SOURCES) == COCO and len({x.row for x in SOURCES.values()}) == 80
    for name, source in SOURCES.items():
        assert NAMES[source.row] == source.name, name
        assert (source.likeness == SAME) == (source.name.lower() == name), name
    assert SOURCES["bicycle"].row == 46 and SOURCES["toothbrush"].row == 226
    assert SOURCES["tv"].likeness == SYNONYM and SOURCES["sports ball"].likeness == NEAR


@pytest.mark.parametrize(("kind", "number"), [("dino", 5), ("detr", 2)])
def test_all_groups_take_the_rows_of_the_table(tmp_path, capsys, kind, number):
    weights, before = save(tmp_path, kind)
    out = str(tmp_path / "coco.pth")
    assert main(["fit", weights, out, "--classes", "objects365-to-coco"]) == 0
    restored = restore(out)
    assert restored.classes == COCO and restored.cfg.DATASETS.TEST == ("coco_2017_val",)
    after, rows = restored.model.state_dict(), [x.row for x in SOURCES.values()]
    seen = [x for x in after if "class_head" in x or "label_embedding" in x]
    assert len(seen) == number
    for name in after:
        if name not in seen:
            assert torch.equal(after[name], before[name]), name
            continue
        assert torch.equal(rows_of(name, after)[:80], rows_of(name, before)[rows]), name
        if "label_embedding" in name:  # the last row is that of an unknown class
            assert torch.equal(after[name][80], before[name][365])
    if kind == "dino":
        assert after["head.queries.heads.class_head.weight"].shape[:2] == (2, 80)
    printed = capsys.readouterr().out.split("\n")
    assert [x.split() for x in printed if x.startswith("bicycle")] == [
        ["bicycle", "Bicycle", "46", "same", "name"]
    ]
    assert any(x.split() == ["bird", "Wild", "Bird", "56", "approximate"] for x in printed)
    assert any("head.predictor.class_heads.0.weight (80, 32)" in x for x in printed)


def test_objectness_stays_with_other_classes(tmp_path):
    """Class 0 of Deformable DETR's first stage stands for any object, and not for a person."""
    weights, before = save(tmp_path, "objectness", classes=[NAMES[1], "x", NAMES[0]])
    wanted = tmp_path / "classes.json"
    wanted.write_text(json.dumps({"x": "X", "unicorn": None}))
    main(["fit", weights, str(tmp_path / "out.pth"), "--classes", str(wanted)])
    after = restore(str(tmp_path / "out.pth")).model.state_dict()
    name = "head.queries.heads.class_head.weight"
    assert torch.equal(after[name][:, 0], before[name][:, 0])
    name = "head.predictor.class_heads.0.weight"
    assert torch.equal(after[name][0], before[name][1])


def test_the_running_mean_is_fitted_and_a_file_says_which_rows(tmp_path, capsys):
    weights, mean = save(tmp_path, "detr", ("cat", "dog", "cow"), has_mean=True)
    wanted = tmp_path / "classes.json"
    wanted.write_text(json.dumps({"cat": "Dog", "dog": "cat", "unicorn": None}))
    main(["fit", weights, str(tmp_path / "out.pth"), "--classes", str(wanted)])
    restored = restore(str(tmp_path / "out.pth"))
    assert restored.classes == ["cat", "dog", "unicorn"]
    found = restored.model.state_dict()["head.predictor.class_heads.0.bias"]
    assert torch.equal(found[:2], mean["head.predictor.class_heads.0.bias"][[1, 0]])
    assert torch.equal(
        restored.model.state_dict()["head.queries.bank.weight"], mean["head.queries.bank.weight"]
    )
    assert "(new)" in capsys.readouterr().out


def test_heads_of_several_layers_are_fitted(tmp_path, capsys):
    """PETR's, whose last layer has the rows of classes; its others have as many channels."""
    classes = ["cat", "dog", *"abcdefghijklmnopqrstuvwxyzABCD"]
    weights, before = save(tmp_path, "petr", classes)
    assert before["head.predictor.class_heads.0.0.weight"].shape == (32, 32)
    wanted = tmp_path / "classes.json"
    wanted.write_text(json.dumps({"dog": "dog", "cat": "cat", "unicorn": None}))
    main(["fit", weights, str(tmp_path / "out.pth"), "--classes", str(wanted)])
    after = restore(str(tmp_path / "out.pth")).model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(".class_heads." in name and ".6." in name for name in changed)
    for name in changed:
        assert torch.equal(after[name][:2], before[name][[1, 0]]) and len(after[name]) == 3


def test_a_model_without_rows_of_classes_is_refused(tmp_path, monkeypatch):
    weights, _ = save(tmp_path, "detr", ("cat", "dog"))
    monkeypatch.setattr("groupdetr_d2.checkpoint.fitting.CLASS_ROWS", ())
    (tmp_path / "classes.json").write_text(json.dumps({"dog": "dog", "cat": "cat"}))
    with pytest.raises(UserError, match="no tensor with a row for each of its 2 classes"):
        fit_file(weights, str(tmp_path / "out.pth"), str(tmp_path / "classes.json"))


def test_fine_tuning_from_objects365_uses_the_table_by_itself(tmp_path, caplog):
    weights, before = save(tmp_path, "dino")
    cfg = small_config(CONFIGS["dino"], 3)
    model = build_model(cfg)
    run = RunInfo(cfg)
    assert run.classes == COCO
    checkpointer = GroupCheckpointer(model, run=run)
    checkpointer.load(weights, checkpointables=[])
    assert "rows of 80 are matched by the table of Objects365 and COCO" in caplog.text
    assert not checkpointer.unmatched
    name, rows = "head.queries.heads.class_head.weight", [x.row for x in SOURCES.values()]
    assert torch.equal(model.state_dict()[name][:2], before[name][:, rows])
    assert len(model.state_dict()[name]) == 3


def test_a_file_with_other_rows_than_classes_is_refused(tmp_path):
    weights, _ = save(tmp_path, "detr", num_groups=1)
    content = torch.load(weights, weights_only=True)
    name = "head.predictor.class_heads.0.bias"
    content["model"][name] = content["model"][name][:80]
    torch.save(content, weights)
    wanted = tmp_path / "classes.json"
    wanted.write_text('{"sneakers": "Sneakers"}')
    with pytest.raises(UserError, match=f"does not fill the model: .*{name}"):
        fit_file(weights, str(tmp_path / "out.pth"), str(wanted))


WRONG = {
    "[1]": "has to be an object such as",
    "{}": "has to be an object such as",
    '{"a": 3}': "has to be an object such as",
    "{": "is no JSON",
    '{"a": "horse"}': "has no classes horse; it has cat, dog, cow",
}


def test_a_wrong_table_is_refused(tmp_path):
    weights, _ = save(tmp_path, "detr", classes=("cat", "dog", "cow"), num_groups=1)
    wanted, out = str(tmp_path / "classes.json"), str(tmp_path / "out.pth")
    with pytest.raises(UserError, match="neither objects365-to-coco nor a file"):
        fit_file(weights, out, wanted)
    for content, message in WRONG.items():
        (tmp_path / "classes.json").write_text(content)
        with pytest.raises(UserError, match=message):
            fit_file(weights, out, wanted)
    with pytest.raises(UserError, match="is no model of Objects365 v2: it has 3 classes"):
        fit_file(weights, out, "objects365-to-coco")
    assert not (tmp_path / "out.pth").exists()
