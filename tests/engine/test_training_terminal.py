"""What a training shows on a terminal and in a pipe, and the commands that it ends with."""

import io
import re
import shlex
import sys

import pytest
import torch
from detectron2.utils.events import EventStorage

from groupdetr_d2.checkpoint import CheckpointError
from groupdetr_d2.checkpoint.stripping import strip
from groupdetr_d2.commands import build_parser
from groupdetr_d2.commands import run as main
from groupdetr_d2.config import build_config
from groupdetr_d2.engine.progress import ProgressPrinter
from groupdetr_d2.engine.report import longer, next_commands
from groupdetr_d2.engine.setup import setup_config
from groupdetr_d2.engine.trainer import Trainer
from tests.conftest import small_config
from tests.engine.test_engine import run_in_process, tiny_run
from tests.inference.test_predict import make_checkpoint

SHAPES = "configs/quick_start/group_conditional_detr_shapes.yaml"


def test_a_default_training_says_what_a_person_needs(tmp_path, monkeypatch, capsys):
    """In a dozen lines; environment and configuration are in the files."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    small = ["DATASETS.SHAPES.NUM_TRAIN", "8", "DATASETS.SHAPES.NUM_VAL", "2"]
    opts = [*small, "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "[]", "OUTPUT_DIR", str(tmp_path / "o")]
    assert main(["train", "--config-file", SHAPES, *opts]) == 0
    lines = capsys.readouterr().out.splitlines()
    before = next(i for i, line in enumerate(lines) if " iter 1/1 " in line)
    assert before < 20  # of the 60 that are allowed
    text = "\n".join(lines[:before])
    for words in (
        *(f"trains {SHAPES}", "8 training images", "2 images of shapes_val to evaluate on"),
        *("K = 5 groups of N = 25 queries: 1.37 M parameters", "1 iterations (1 epochs) of 8"),
        *("on cpu in 1 process; learning rate 0.0007;", "o/log.txt has environment"),
        *("MODEL.WEIGHTS is empty", "evaluation every 700 iterations and at the end"),
    ):
        assert words in text, words
    file = (tmp_path / "o/log.txt").read_text()
    assert "\nPyTorch " in file and not any(x.startswith("PyTorch ") for x in lines)
    assert "CUDNN_BENCHMARK: false" in file and not any("CUDNN_BENCHMARK" in x for x in lines)
    assert "\x1b" not in file and " iter 1/1 " in file
    assert (tmp_path / "o/config.yaml").read_text() in file


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_instead_of_lines(tmp_path, monkeypatch):
    terminal, lines = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", lines)
    monkeypatch.setattr("groupdetr_d2.engine.progress.REFRESHED", 0.0)
    trainer = run_in_process(tiny_run(tmp_path, "TEST.EVAL_PERIOD", 3))
    bar, text = terminal.getvalue(), lines.getvalue()
    assert re.search(r"epoch 2.50/3 5/6 \|\S+ *\| eta \S+, .*AP \d.*  loss \S+  class \S+  b", bar)
    assert trainer.progress_bar.bar is None and "6/6" in bar
    assert " iter 6/6 " not in text and "box AP" in text
    assert " iter 6/6 " in (tmp_path / "out/log.txt").read_text()


def test_lines_that_are_sent_elsewhere_go_on_beside_a_bar(monkeypatch, package_log):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for stream, is_hidden in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stdout", stream)
        with EventStorage():
            ProgressPrinter(2, None, torch.device("cpu"), ()).write()
        assert hasattr(package_log.records[-1], "file_alone") is is_hidden


def untested(arguments):
    """The arguments of a training without what it is evaluated on, which takes the most time."""
    place = arguments.index("--val-json")
    return [*arguments[:place], *arguments[place + 4 :]]


def commands_in(text):
    return dict(re.findall(r"^  ([a-z-]+): (.*)$", text, re.M))


def words_of(command):
    """The arguments of a printed training command."""
    python, script, *words = shlex.split(command)
    assert python == sys.executable and script == "train_net.py"
    return words


def test_the_command_that_continues_really_does(tmp_path, package_log):
    """SOLVER.EPOCHS would set MAX_ITER back to what is done already."""
    run_in_process(untested(tiny_run(tmp_path, "SOLVER.STEPS", "[]", "SOLVER.EPOCHS", 1)))
    command = commands_in(package_log.text)["continue"]
    assert f"{tmp_path}/out/config.yaml" in command
    words = words_of(command)
    words.remove("--resume")
    trainer = run_in_process(words, resume=True)
    assert (trainer.start_iter, trainer.max_iter) == (2, 4)
    last = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    assert last["iteration"] == 3


def test_the_key_that_ended_a_training_is_raised():
    cfg = build_config(SHAPES, ["SOLVER.PATIENCE", 5])
    assert longer(cfg) == "SOLVER.MAX_ITER 4200"
    assert longer(cfg, has_ended=False) == "SOLVER.PATIENCE 10"
    cfg.SOLVER.EPOCHS = 3
    assert longer(cfg) == "SOLVER.EPOCHS 6"


def test_a_stripped_checkpoint_says_so_everywhere(tmp_path, package_log, capsys):
    arguments = untested(tiny_run(tmp_path, "SOLVER.MAX_ITER", 1))
    cfg = run_in_process(arguments).cfg.clone()
    out, note = tmp_path / "out", "stripped: the primary group of K = 2 alone"
    assert "continue" in commands_in(next_commands(cfg))
    strip(str(out / "model_final.pth"), str(out / "model_final.pth"))
    with pytest.raises(CheckpointError, match=f"last checkpoint of this folder is {note}"):
        Trainer(cfg).resume_or_load(resume=True)
    found = commands_in(next_commands(cfg))
    assert note in found["note"] and "continue" not in found
    words = words_of(found["fine-tune"])
    assert words[-4:] == ["MODEL.WEIGHTS", f"{out}/model_final.pth", "OUTPUT_DIR", f"{out}/tuned"]
    Trainer(setup_config(build_parser().parse_args(["train", *words]))).resume_or_load(False)
    assert f"model_final.pth is {note}" in package_log.text  # which the log of a new run says, too
    assert main(["compare", str(out), "--out", str(tmp_path / "compared")]) == 0
    assert f"{out}/model_final.pth is {note}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=rf"final.pth is a file \({note}.*compare takes the out"):
        main(["compare", str(out / "model_final.pth")])


def test_what_is_printed_after_an_evaluation_does_not_continue_a_run(tmp_path):
    weights = str(make_checkpoint(tmp_path))
    strip(weights, weights)
    opts = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "empty")]
    found = commands_in(next_commands(small_config(SHAPES, 2, *opts, "DATASETS.TEST", ())))
    assert list(found) == ["evaluate", "predict", "fine-tune", "note"]
    assert f"{weights} is stripped: the primary group of K = 3 alone" in found["note"]
