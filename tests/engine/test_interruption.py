"""Trainings that are killed, stopped, or lose a file, and what resuming makes of them."""

import json
import os
import random
import signal
import time

import pytest
import torch

from groupdetr_d2.checkpoint import CheckpointError, GroupCheckpointer
from groupdetr_d2.engine import trainer as trainer_module
from groupdetr_d2.engine.interruption import Interrupted, StopSignals
from tests import recorded_training, warm
from tests.conftest import small_model
from tests.engine.test_engine import run_in_process, tiny_run

ITERATIONS = 12


def start(folder, arguments, processes=1, pause=0.0):
    folder.mkdir(exist_ok=True)
    several = ["--num-gpus", processes, "--dist-url", "auto"] if processes > 1 else []
    environment = {**os.environ, "RECORD_FOLDER": str(folder), "RECORD_PAUSE": str(pause)}
    words = [str(x) for x in (*several, *arguments)]
    return warm.start(recorded_training.run, words, environment=environment)


def finish(running):
    text = "".join(running.communicate(timeout=300))
    return running.returncode, text


def lines(folder, rank=0):
    path = folder / f"{rank}.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for(condition, running):
    end = time.monotonic() + 120
    while not condition():
        assert running.poll() is None and time.monotonic() < end, finish(running)[1][-3000:]
        time.sleep(0.01)


def options(tmp_path, out):
    solver = ["SOLVER.MAX_ITER", ITERATIONS, "SOLVER.STEPS", "[8]", "SOLVER.CHECKPOINT_PERIOD", 2]
    more = ["MODEL.EMA.ENABLED", True, "SOLVER.ON_NONFINITE", "skip", "TEST.EVAL_PERIOD", 0]
    workers = ["DATALOADER.NUM_WORKERS", 1]
    return ["--resume", *tiny_run(tmp_path, *solver, *more, *workers, out=out)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_training_resumes_bit_for_bit(tmp_path, processes):
    """SIGKILL at three random moments; whatever is trained again gives the same losses again."""
    whole, parts = tmp_path / "whole_losses", tmp_path / "part_losses"
    code, text = finish(start(whole, options(tmp_path, "whole"), processes))
    assert code == 0, text[-3000:]
    chance = random.Random(processes)
    for _ in range(3):
        known = len(lines(parts))
        goal, delay = known + chance.randint(1, 4), chance.random() * 0.3
        running = start(parts, options(tmp_path, "parts"), processes, pause=0.1)
        wait_for(lambda goal=goal: len(lines(parts)) >= goal, running)
        time.sleep(delay)
        os.killpg(running.pid, signal.SIGKILL)
        assert finish(running)[0] == -signal.SIGKILL
    code, text = finish(start(parts, options(tmp_path, "parts"), processes))
    assert code == 0, text[-3000:]
    for rank in range(processes):
        expected, found = dict(lines(whole, rank)), lines(parts, rank)
        assert len(expected) == ITERATIONS and len(found) > ITERATIONS
        assert {iteration for iteration, _ in found} == set(expected)
        for iteration, losses in found:
            assert losses == expected[iteration], iteration
    final = [torch.load(tmp_path / out / "model_final.pth") for out in ("whole", "parts")]
    for part in ("model", "mean_weights"):
        state, again = (x[part].get("model", x[part]) for x in final)
        assert all(torch.equal(value, again[name]) for name, value in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("number, processes", [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_writes_a_checkpoint_first(tmp_path, number, processes):
    """To the command's own process, or to all of its group with the loading workers."""
    folder, arguments = tmp_path / "losses", options(tmp_path, "out")
    arguments += ["SOLVER.CHECKPOINT_PERIOD", 1000]
    running = start(folder, arguments, processes, pause=0.1)
    wait_for(lambda: len(lines(folder)) >= 3, running)
    (os.killpg if processes == 1 else os.kill)(running.pid, number)
    code, text = finish(running)
    assert code == 128 + number, text[-3000:]
    assert f"stopped by {number.name}" in text and "--resume" in text and "Traceback" not in text
    done = len(lines(folder))
    last = torch.load(tmp_path / f"out/model_{done - 1:07d}.pth")
    assert last["iteration"] == done - 1
    assert finish(start(folder, arguments, processes))[0] == 0
    assert [iteration for iteration, _ in lines(folder)] == list(range(ITERATIONS))


def test_a_signal_in_evaluation_or_a_failure_of_it_saves_what_was_trained(tmp_path, monkeypatch):
    def fail(cls, cfg, model):
        raise OSError("results cannot be written")

    monkeypatch.setattr(trainer_module.Trainer, "test", classmethod(fail))
    opts = ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 100]
    with pytest.raises(OSError, match="cannot be written"):
        run_in_process(tiny_run(tmp_path, *opts))
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000001.pth"

    def stop(cls, cfg, model):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("the signal came too late")

    monkeypatch.setattr(trainer_module.Trainer, "test", classmethod(stop))
    with pytest.raises(Interrupted, match="SIGTERM"):
        run_in_process(tiny_run(tmp_path, *opts), resume=True)
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000003.pth"


def test_a_repeated_signal_interrupts_at_once(monkeypatch):
    moments = iter([0.0, 1.0, 5.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the terminal's, and the launcher's
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_must_be_finished_is_not_interrupted(monkeypatch):
    monkeypatch.setattr(time, "monotonic", iter([0.0, 9.0, 9.0]).__next__)
    with StopSignals() as signals:
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_the_last_evaluation_can_fail_and_the_run_be_made_longer(
    tmp_path, monkeypatch, every_iteration
):
    """What is saved after the last iteration resumes with the next, as if all had gone well."""
    run_in_process(tiny_run(tmp_path, "SOLVER.MAX_ITER", 8, out="whole"))
    whole = list(every_iteration)
    every_iteration.clear()
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "test", classmethod(lambda *_: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run_in_process(tiny_run(tmp_path, out="parts"))
    run_in_process(tiny_run(tmp_path, "SOLVER.MAX_ITER", 8, out="parts"), resume=True)
    assert every_iteration == whole


def test_the_last_checkpoints_are_counted_over_attempts(tmp_path):
    opts = ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.KEEP_CHECKPOINTS", 2, "DATASETS.TEST", "()"]
    run_in_process(tiny_run(tmp_path, *opts), iterations=3)
    run_in_process(tiny_run(tmp_path, *opts), resume=True)
    numbers = sorted(p.stem for p in (tmp_path / "out").glob("model_0*.pth"))
    assert numbers == ["model_0000004", "model_0000005"]


def damage(path, how):
    if how == "truncated":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, how, every_iteration, package_log):
    run_in_process(tiny_run(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2, out="out"))
    whole = list(every_iteration)
    out = tmp_path / "out"
    for name in ("model_final.pth", "model_0000005.pth", "model_best.pth"):
        if (out / name).is_file():
            damage(out / name, how)
    every_iteration.clear()
    run_in_process(tiny_run(tmp_path, out="out"), resume=True)
    assert every_iteration == whole[4:]
    if how != "gone":
        assert "Resuming from" in package_log.text and "model_0000003.pth" in package_log.text


def test_a_run_without_any_good_checkpoint_says_so(tmp_path):
    checkpointer = GroupCheckpointer(small_model(), str(tmp_path))
    checkpointer.save("model_0000001")
    damage(tmp_path / "model_0000001.pth", "truncated")
    with pytest.raises(CheckpointError, match="model_0000001.pth cannot be read"):
        checkpointer.resume_or_load("")


def test_a_half_written_name_of_the_last_checkpoint_does_not_matter(tmp_path):
    checkpointer = GroupCheckpointer(small_model(), str(tmp_path))
    checkpointer.save("model_0000001")
    checkpointer.save("model_0000003")
    for text in ("", "model_00"):
        (tmp_path / "last_checkpoint").write_text(text)
        assert checkpointer.get_checkpoint_file().endswith("model_0000003.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(
    tmp_path, every_iteration, package_log
):
    """/dev/full is a disk without space; the next period has some again."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model_0000001.pth.unfinished").symlink_to("/dev/full")
    run_in_process(tiny_run(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2, out="out"))
    assert "Is the disk full?" in package_log.text and "The training goes on" in package_log.text
    names = {p.name for p in (tmp_path / "out").glob("model_*")}
    assert len(every_iteration) == 6 and "model_0000003.pth" in names
    assert "model_0000001.pth" not in names


def test_the_last_checkpoint_must_be_written(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model_final.pth.unfinished").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="model_final.pth could not be written"):
        run_in_process(tiny_run(tmp_path, out="out"))
