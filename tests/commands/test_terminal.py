"""The terminal: the first line, mistyped words, `| head` and Ctrl-C."""

import logging
import os
import signal
import subprocess
import sys

import pytest

from groupdetr_d2 import commands
from groupdetr_d2.commands import build_parser, train
from groupdetr_d2.commands import run as main
from groupdetr_d2.engine.interruption import Interrupted, OutputClosed, StopSignals
from groupdetr_d2.engine.reporting import report_errors
from groupdetr_d2.engine.terminal import Console, is_for_terminal
from tests.conftest import ROOT

SHAPES = "configs/quick_start/group_conditional_detr_shapes.yaml"


def announced(capsys, *words):
    train.announce(build_parser().parse_args(["train", *words]))
    return capsys.readouterr().out.splitlines()


def test_the_first_lines_say_what_is_trained_and_where(capsys, monkeypatch):
    first, second, third = announced(capsys, "--config-file", SHAPES)
    assert first == f"trains {SHAPES}" and third.startswith("loading")
    assert second.startswith("in output/group_conditional_detr_shapes, one process on a GPU if")
    own = ["OUTPUT_DIR", "here", "MODEL.DEVICE", "cpu"]
    lines = announced(capsys, "--resume", "--num-gpus", "2", "--config-file", SHAPES, *own)
    assert lines[0] == f"resumes {SHAPES}" and lines[1].startswith("in here, 2 processes on cpu;")
    lines = announced(capsys, "--eval-only", "--config-file", SHAPES)
    assert lines[0] == f"evaluates {SHAPES}" and "Ctrl-C" not in lines[1]
    monkeypatch.setenv("RANK", "1")  # torchrun has started others, of which the first one speaks
    assert announced(capsys, "--config-file", SHAPES) == []


def test_the_first_lines_need_no_torch():
    program = (
        "import sys; from groupdetr_d2.commands import build_parser, train;"
        f"train.announce(build_parser().parse_args(['train', '--config-file', '{SHAPES}']));"
        "assert not {'torch', 'detectron2', 'numpy'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "words, meant",
    [
        (["trian"], "'trian'; did you mean train"),
        (["analyze", "convergense"], "did you mean convergence?"),
        (["convert", "--source", "dab_detr", "a", "b"], "did you mean dab-detr"),
    ],
)
def test_a_mistyped_word_gets_the_nearest_one(capsys, words, meant):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and meant in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, near",
    [
        ("group_conditional_detr_shape", SHAPES),
        ("configs/quickstart/group_conditional_detr_shapes.yml", SHAPES),
        ("DINO/dino_4scale_R50_12ep.yaml", "configs/DINO/dino_4scale_R_50_12ep.yaml"),
        ("group_petrv2", "configs/PETR/group_petrv2_V2_99_800x320_24ep.yaml"),
    ],
)
def test_a_mistyped_yaml_gets_the_nearest_name_at_once(name, near, monkeypatch):
    """Before PyTorch is imported, whatever the command is."""
    for command in (["train"], ["info"], ["benchmark"]):
        module = commands.commands_by_name()[command[0]]
        monkeypatch.setattr(module, "run", lambda args: pytest.fail("it was begun"))
        with pytest.raises(SystemExit, match=f"{name} does not exist; did you mean {near}"):
            main([*command, "--config-file", name])
    with pytest.raises(SystemExit, match="exist; `python -m groupdetr_d2 models` lists all"):
        main(["info", "--config-file", "nothing_like_it_at_all"])


@pytest.mark.parametrize("words", [["models", "shapes"], ["--help"], ["completion", "bash"]])
def test_a_reader_that_has_gone_ends_a_command_as_a_shell_counts(words):
    """The same as `| head -0`, without its race."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "groupdetr_d2", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE and done.stderr == ""


class Closed:
    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def test_a_log_that_nobody_reads_stops_a_training_with_a_checkpoint():
    handler = logging.StreamHandler(Console(Closed()))
    record = logging.makeLogRecord({"msg": "a line"})
    with StopSignals() as signals:
        handler.emit(record)  # between two iterations: the hook of checkpoints ends it
        assert signals.received == signal.SIGPIPE
    with StopSignals() as signals, signals.at_once(), pytest.raises(Interrupted, match="SIGPIPE"):
        handler.emit(record)
    with pytest.raises(OutputClosed):
        handler.emit(record)
    with pytest.raises(SystemExit) as end, report_errors():
        handler.emit(record)
    assert end.value.code == 141


def test_another_broken_pipe_is_no_end_of_the_output():
    with pytest.raises(BrokenPipeError), report_errors():
        raise BrokenPipeError


def test_ctrl_c_is_no_traceback(capsys):
    with pytest.raises(SystemExit) as end, report_errors():
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_what_the_table_of_loaded_tensors_says_is_not_shown_twice():
    def is_shown(name, text="x", **more):
        return is_for_terminal(logging.makeLogRecord({"name": name, "msg": text, **more}))

    assert is_shown("groupdetr_d2.checkpoint.loading_report")
    assert not is_shown("detectron2.checkpoint.c2_model_loading")
    assert not is_shown("fvcore.common.checkpoint", levelno=logging.WARNING)
    loading = "d2.checkpoint.detection_checkpoint"
    assert is_shown(loading, "[DetectionCheckpointer] Loading from R-50.pkl ...")
    assert not is_shown(loading, "[DetectionCheckpointer] Loading from  ...")
    assert not is_shown("groupdetr_d2.engine.setup", file_alone=True)
