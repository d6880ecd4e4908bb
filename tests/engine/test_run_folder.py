"""One run a folder, and what is said when one is resumed with something else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from groupdetr_d2.checkpoint import CheckpointError
from groupdetr_d2.commands import build_parser
from groupdetr_d2.engine.run_folder import (
    RunFolderError,
    give_folder_back,
    prepare_folder,
    put_metrics_aside,
    take_folder,
)
from groupdetr_d2.engine.setup import setup_config
from groupdetr_d2.engine.trainer import Trainer
from tests.engine.test_engine import run_in_process, tiny_run, train_net


def test_a_new_run_does_not_mix_with_another(tmp_path):
    run_in_process(tiny_run(tmp_path), iterations=3)
    before = (tmp_path / "out/metrics.json").read_text()
    with pytest.raises(RunFolderError, match=r"out holds a run already .*--resume, choose another"):
        run_in_process(tiny_run(tmp_path, "SOLVER.MAX_ITER", 2))
    assert (tmp_path / "out/metrics.json").read_text() == before


def test_the_metrics_of_a_run_without_checkpoints_are_put_aside(tmp_path, package_log):
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n')
    put_metrics_aside(str(tmp_path))
    assert (tmp_path / "metrics.earlier0.json").read_text() == '{"iteration": 1}\n'
    assert "is of a run that left no checkpoint" in package_log.text
    put_metrics_aside(str(tmp_path))
    assert not (tmp_path / "metrics.json").exists()


def test_a_run_that_left_no_checkpoint_is_begun_anew(tmp_path):
    """The usual command of a queue is --resume, also the first time."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.json").write_text('{"iteration": 0, "total_loss": 1.0}\n')
    run_in_process(tiny_run(tmp_path), resume=True)
    assert len((tmp_path / "out/metrics.earlier0.json").read_text().splitlines()) == 1
    assert '"iteration": 5' in (tmp_path / "out/metrics.json").read_text()


def test_a_run_that_is_refused_changes_nothing(tmp_path):
    run_in_process(tiny_run(tmp_path), iterations=3)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    cfg = setup_config(parsed(tiny_run(tmp_path, "SEED", 7), resume=True))
    with pytest.raises(RunFolderError, match="holds a run already"):
        Trainer(cfg).train()
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert {name: after[name] for name in ("config.yaml", "metrics.json")} == {
        name: before[name] for name in ("config.yaml", "metrics.json")
    }


def parsed(arguments, *, resume):
    args = build_parser().parse_args(["train", *map(str, arguments)])
    args.resume = resume
    return args


def test_two_runs_do_not_share_a_folder(tmp_path):
    """The first one is in another process; the lock goes when it ends."""
    code = (
        "import sys, time; from groupdetr_d2.engine.run_folder import take_folder;"
        "take_folder(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match="another training is writing to OUTPUT_DIR"):
        take_folder(str(tmp_path))
    first.kill()
    first.wait()
    take_folder(str(tmp_path))
    give_folder_back(str(tmp_path))


@pytest.mark.parametrize("folder", ["taken", "taken/below", "/proc/x"])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, folder):
    (tmp_path / "taken").touch()
    with pytest.raises(RunFolderError, match=f"OUTPUT_DIR .*{folder} cannot be written to"):
        prepare_folder(str(tmp_path / folder) if folder[0] != "/" else folder)


def resumed(tmp_path, *opts):
    run_in_process(tiny_run(tmp_path), iterations=3)
    return run_in_process(tiny_run(tmp_path, *opts), resume=True)


def test_another_rate_is_applied_and_said(tmp_path, package_log):
    trainer = resumed(tmp_path, "SOLVER.BASE_LR", 2e-5, "SOLVER.WEIGHT_DECAY", 0.5)
    assert "resumed with another SOLVER.BASE_LR: 2e-05 instead of 0.0001" in package_log.text
    assert "another SOLVER.WEIGHT_DECAY: 0.5 instead of 0.0001" in package_log.text
    rates = [g["lr"] for g in trainer.optimizer.param_groups]
    assert rates == pytest.approx([2e-6, 2e-7])  # after the step at 5 of 6 iterations
    assert {g["weight_decay"] for g in trainer.optimizer.param_groups} == {0.5}


def test_the_seed_stays_that_of_the_run(tmp_path, package_log):
    trainer = resumed(tmp_path, "SEED", 99)
    assert "SEED stays 3, as the run has begun, and is not 99" in package_log.text
    assert trainer.cfg.SEED == 3
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["SEED"] == 3


def test_an_unchanged_run_is_resumed_without_a_word(tmp_path, package_log):
    resumed(tmp_path)
    assert not re.search("resumed with another|stays|are not those", package_log.text)


def rewritten(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


CHANGES = {
    "an image less": lambda c: c.update(images=c["images"][1:]),
    "moved boxes": lambda c: [a.update(bbox=[1, 1, 9, 9]) for a in c["annotations"]],
    "another order": lambda c: (
        [x.update(id=99 - x["id"]) for x in c["images"]]
        + [a.update(image_id=99 - a["image_id"]) for a in c["annotations"]]
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_data_are_noticed(tmp_path, package_log, name):
    arguments = tiny_run(tmp_path)
    run_in_process(arguments, iterations=3)
    rewritten(tmp_path / "train.json", CHANGES[name])
    run_in_process(arguments, resume=True)
    assert "are not those that this run has begun with" in package_log.text


@pytest.mark.parametrize("names", [["cat", "horse"], ["dog", "cat"]])
def test_other_classes_are_refused(tmp_path, names):
    arguments = tiny_run(tmp_path)
    run_in_process(arguments, iterations=3)

    def rename(content):
        for category, name in zip(content["categories"], names, strict=True):
            category["name"] = name

    for file in ("train.json", "val.json"):
        rewritten(tmp_path / file, rename)
    with pytest.raises(CheckpointError, match=r"the run has the classes \['cat', 'dog'\]"):
        run_in_process(arguments, resume=True)


def test_nothing_to_evaluate_on_is_said(tmp_path):
    arguments = tiny_run(tmp_path)
    for flag in ("--val-json", "--val-images"):
        place = arguments.index(flag)
        del arguments[place : place + 2]
    done = train_net("--eval-only", *arguments, check=False)
    assert done.returncode == 1 and "--eval-only has nothing to evaluate on" in done.stderr


@pytest.mark.parametrize("kind", ["none", "no tensors", "nan", "other shape"])
def test_weights_that_are_none_are_not_evaluated(tmp_path, kind):
    run_in_process(tiny_run(tmp_path), iterations=2)
    weights = tmp_path / "out/model_final.pth"
    content = torch.load(weights, weights_only=True)
    if kind == "no tensors":
        content["model"] = {}
    for name, value in content["model"].items():
        if kind == "nan" and "class_head" in name:
            content["model"][name] = value * float("nan")
        if kind == "other shape" and name.endswith("class_heads.0.bias"):
            content["model"][name] = value[:1]
    torch.save(content, weights)
    chosen = "" if kind == "none" else str(weights)
    done = train_net("--eval-only", *tiny_run(tmp_path), "MODEL.WEIGHTS", chosen, check=False)
    assert done.returncode == 1
    words = {"none": "--eval-only needs weights", "nan": "tensors are NaN or infinite"}
    assert words.get(kind, "does not fill the model") in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_user_error_is_one_message(tmp_path):
    """The traceback is in the log file, for those who want it."""
    arguments = tiny_run(tmp_path)
    rewritten(tmp_path / "train.json", lambda c: c["annotations"][1].update(id=1))
    done = train_net(*arguments, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/train.json: annotations")


def test_a_model_that_has_overflowed_is_named_in_evaluation(tmp_path):
    opts = ["SOLVER.BASE_LR", 1e30, "SOLVER.ON_NONFINITE", "skip"]
    done = train_net(*tiny_run(tmp_path, *opts), check=False)
    assert done.returncode == 1 and "outputs on" in done.stderr and "not finite" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (tmp_path / "out/log.txt").read_text()


@pytest.mark.parametrize("config", ["shapes", "own data"])
def test_a_yaml_is_found_and_nothing_is_generated_anywhere(tmp_path, monkeypatch, config):
    """In an empty folder: Detectron2 opens the name again, and would not find it."""
    arguments = tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    name = "configs/quick_start/conditional_detr_shapes.yaml"
    own = arguments[2:10] if config == "own data" else []
    words = ["--config-file", name, "--eval-only", *own, "OUTPUT_DIR", "out"]
    args = build_parser().parse_args(["train", *map(str, words)])
    setup_config(args)
    assert Path(args.config_file).is_file()
    assert not (tmp_path / "datasets").exists()


def test_weights_out_of_reach_are_named(tmp_path):
    address = "http://127.0.0.1:9/R-50.pkl"
    done = train_net(*tiny_run(tmp_path, "MODEL.WEIGHTS", address), check=False)
    assert done.returncode == 1
    assert f"MODEL.WEIGHTS {address} cannot be reached" in done.stderr
    done = train_net(*tiny_run(tmp_path, "MODEL.WEIGHTS", tmp_path), check=False)
    assert "(MODEL.WEIGHTS) is a folder" in done.stderr


def test_classes_that_the_checkpoint_does_not_know_are_not_evaluated(tmp_path):
    run_in_process(tiny_run(tmp_path), iterations=2)
    arguments = tiny_run(tmp_path, "MODEL.WEIGHTS", tmp_path / "out/model_final.pth")

    def rename(content):
        content["categories"][1]["name"] = "horse"

    for file in ("train.json", "val.json"):
        rewritten(tmp_path / file, rename)
    done = train_net("--eval-only", *arguments, check=False)
    assert done.returncode == 1 and "does not know the classes ['horse']" in done.stderr
