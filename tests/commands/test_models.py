"""What `models` and `info` say, and that a figure stands in one place."""

import re

import pytest
import torch

from groupdetr_d2.commands import run as main
from groupdetr_d2.config import build_config
from groupdetr_d2.config.listing import epochs_of, list_configs, read_yaml
from groupdetr_d2.modeling.meta_arch import task_of
from tests.conftest import MASK2FORMER, ROOT, SHRINK, SMALL_BACKBONE, all_configs
from tests.inference.test_predict import make_checkpoint

CONFIG = "configs/ConditionalDETR/group_conditional_detr_R_50_12ep.yaml"
KINDS = {"boxes": "bbox", "masks": "segm", "3D boxes": "nuscenes"}


@pytest.fixture(scope="module")
def configs():
    return list_configs()


def test_every_yaml_is_listed_as_detectron2_reads_it(configs):
    listed = {x.name: x for x in configs}
    assert sorted(listed) == all_configs()
    for name in (*all_configs()[::9], MASK2FORMER, "configs/quick_start/group_petr_cubes.yaml"):
        cfg, own = build_config(str(ROOT / name)), listed[name]
        assert own.num_groups == cfg.MODEL.DETR.NUM_GROUPS
        assert task_of(cfg).kind == KINDS[own.task]
        assert read_yaml(str(ROOT / name))["SOLVER"]["MAX_ITER"] == cfg.SOLVER.MAX_ITER


def test_epochs_of_names_are_those_of_schedules(configs):
    for x in configs:
        named = re.search(r"_(\d+)ep\.yaml", x.name)
        if named and "blood_cells" not in x.name:  # whose images are the user's
            computed = epochs_of(read_yaml(str(ROOT / x.name)), "")
            assert computed == pytest.approx(int(named[1]), rel=0.01), x.name
    assert {x.epochs for x in configs if x.name.endswith("_detr_shapes.yaml")} == {4.2}


def test_the_figures_of_the_readme_are_those_of_the_yamls(configs):
    """The README's "32.6 -> 37.6" is a baseline's and a group's; nothing else has figures."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| .* -> \d.*none yet \|$", text, re.M)
    shown = sorted(x for row in rows for x in re.findall(r"\b\d\d\.\d\b", row))
    listed = [x for x in configs if "/ablations/" not in x.name]
    assert shown == sorted(y for x in listed for y in re.findall(r"\d+\.\d", x.paper))
    ablations = [x for x in configs if "/ablations/" in x.name]
    assert ablations and all(x.paper and x.table for x in ablations)


def test_the_list_can_be_narrowed(capsys):
    assert main(["models", "PETR", "group", "800x320"]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("configs/")]
    assert [line.split()[0] for line in lines] == [x for x in all_configs() if "PETR/group" in x]
    assert "3D boxes  11   24        45.0 NDS, 38.8 mAP (Table 5)" in lines[0]
    with pytest.raises(SystemExit, match="no yaml has petr and shapes in its name"):
        main(["models", "petr", "shapes"])


def described(capsys, *arguments):
    assert main(["info", *map(str, arguments)]) == 0
    lines = [re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {x[0]: x[1].strip() for x in lines if len(x) > 1}


def test_a_configuration_is_described(capsys):
    small = [*SHRINK, *SMALL_BACKBONE, "INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 120]
    rows = described(capsys, "--config-file", CONFIG, *small, "MODEL.FREEZE", "['backbone.*']")
    assert rows["task"] == "boxes (GroupDETR, conditional_detr), 80 classes"
    assert rows["queries"] == "training K = 11 groups of N = 6; inference 1 group of 6"
    assert rows["paper"] == "37.6 AP (Table 3)" and rows["layers"] == "encoder 1, decoder 3"
    assert rows["schedule"].startswith("88716 iterations of 2 (1.5 epochs); ADAMW")
    assert rows["images, test"] == "shorter side 96, longer at most 120"
    forward, whole = (rows[f"GFLOP, {x}"].split() for x in ("inference", "training step"))
    assert forward[1:] == whole[1:] == "for an image of 90 x 120".split()
    assert float(whole[0]) > 2 * float(forward[0]) > 0
    total, trained = map(float, rows["all"].split())
    backbone, frozen = map(float, rows["backbone"].split())  # the last line of that name
    assert frozen == 0 and trained == pytest.approx(total - backbone, abs=0.011)


def test_a_checkpoint_is_described_and_a_stripped_one_says_so(tmp_path, capsys):
    weights, small = make_checkpoint(tmp_path), tmp_path / "small.pth"
    assert "checkpoint" not in described(capsys, "--weights", weights, "--no-flops")
    main(["strip", str(weights), str(small)])
    main(["strip", str(small), str(small)])  # again, which forgets nothing
    capsys.readouterr()
    rows = described(capsys, "--weights", small, "--no-flops")
    assert rows["checkpoint"].startswith("stripped: the primary group of K = 3 alone and no opt")
    assert rows["queries"].startswith("training K = 1 groups of N = 6")
    torch.save({"model": {}}, tmp_path / "none.pth")
    with pytest.raises(SystemExit, match="does not say which configuration"):
        main(["info", "--weights", str(tmp_path / "none.pth")])
    with pytest.raises(SystemExit, match="one of --config-file and --weights"):
        main(["info"])


def test_sets_whose_files_are_absent_are_named(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rows = described(capsys, "--no-flops", "--config-file", CONFIG, *SHRINK, *SMALL_BACKBONE)
    assert re.match(r"coco_2017_val \(there is no .*instances_val2017.json\)", rows["tested on"])
