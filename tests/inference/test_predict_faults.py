"""What `predict` keeps when something goes wrong, and how it says so."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from groupdetr_d2 import Predictor
from groupdetr_d2.commands import run as main
from groupdetr_d2.inference import detections, prediction
from tests import ROOT
from tests.inference.test_predict import make_checkpoint, picture


@pytest.fixture
def weights(tmp_path):
    return str(make_checkpoint(tmp_path, threshold=0.01))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        cv2.imwrite(str(folder / f"{i}.png"), picture(i))
    return folder


def results_of(out):
    text = (out / "detections.json").read_text()
    assert "NaN" not in text and (out / "detections.csv").is_file()
    return [os.path.basename(r["file"]) for r in json.loads(text)["results"]]


def test_bad_files_cost_themselves_alone(weights, folder, tmp_path, capsys):
    (folder / "0.png").write_bytes(b"no picture")
    cv2.imwrite(str(folder / "thin.png"), np.zeros((1, 3000, 3), np.uint8))
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "pipe.png")
    odd = os.fsencode(folder) + b"/caf\xe9.png"  # a name that is no text
    os.rename(folder / "1.png", odd)
    out = tmp_path / "out"
    assert main(["predict", "--weights", weights, "--out", str(out), str(folder)]) == 1
    found = results_of(out)
    assert found == ["2.png", "3.png", "caf\udce9.png", "thin.png"]
    captured = capsys.readouterr()
    assert "4 of 7 files" in captured.out
    for name in ("0.png", "loop.png", "pipe.png"):
        assert f"{name}" in captured.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_done(weights, tmp_path, folder, number):
    number_of_files = 3000  # more than are done before the signal comes
    for i in range(4, number_of_files):
        os.link(folder / "0.png", folder / f"{i}.png")
    out = tmp_path / "out"
    command = ["predict", "--weights", weights, "--out", str(out), str(folder)]
    running = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "groupdetr_d2", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while len(list(out.glob("[0-9]*.png"))) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(number)
    _, text = running.communicate(timeout=30)
    assert running.returncode == 128 + number and "what is done is written" in text
    assert 3 <= len(results_of(out)) < number_of_files
    assert not list(out.glob("*.unfinished")) and not list(out.glob(".*"))


def test_a_full_disk_keeps_what_fits(weights, folder, tmp_path, monkeypatch, capsys):
    written = []

    def fill(path, content):
        if path.suffix == ".png" and len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        path.write_bytes(content)

    monkeypatch.setattr(detections, "write_whole", fill)
    out = tmp_path / "out"
    assert main(["predict", "--weights", weights, "--out", str(out), str(folder)]) == 1
    assert results_of(out) == ["0.png", "1.png"]
    captured = capsys.readouterr()
    assert "the disk is full" in captured.err and "2 of 4 files" in captured.out


class Closed:
    """The output of a command whose reader has gone."""

    encoding = "utf-8"

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self):
        pass


def test_a_reader_that_has_gone_costs_no_results(weights, folder, tmp_path, monkeypatch):
    """Not a picture's error either, which it would be taken for."""
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):  # a real pipe ends it with 141: test_terminal.py
        main(["predict", "--verbose", "--weights", weights, "--out", str(out), str(folder)])
    assert results_of(out) == ["0.png"] and (out / "0.png").is_file()


def arguments_of(folder, tmp_path):
    (tmp_path / "taken").touch()
    (tmp_path / "none.json").write_text('{"images": null}')
    number = {"images": [{"id": 1, "file_name": 5}], "categories": []}
    (tmp_path / "number.json").write_text(json.dumps(number))
    return {
        "--threshold is nan": ["--threshold", "nan"],
        "--device is 'foo'; it can be cpu": ["--device", "foo"],
        "PyTorch finds no GPU here": ["--device", "cuda"],
        "taken cannot be written to": ["--out", str(tmp_path / "taken")],
        "below cannot be written to": ["--out", str(tmp_path / "taken" / "below")],
        "/proc/x cannot be written to": ["--out", "/proc/x"],
        "none.json has no lists": ["--coco-json", str(tmp_path / "none.json")],
        "number.json: 'file_name' of images": ["--coco-json", str(tmp_path / "number.json")],
    }


@pytest.mark.parametrize("place", range(8))
def test_arguments_are_checked_before_the_model_is_built(
    weights, folder, tmp_path, monkeypatch, place
):
    monkeypatch.setattr(prediction, "Predictor", lambda *_, **__: pytest.fail("built"))
    message, arguments = list(arguments_of(folder, tmp_path).items())[place]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        main(["predict", "--weights", weights, *out, *arguments, str(folder)])
    assert message in str(end.value)


def test_the_predictor_takes_lists_and_arrays(weights):
    predict = Predictor(weights)
    grey = picture(0)[..., 0]
    one, two = predict([grey, np.dstack([grey] * 4)])
    assert one.records() == two.records() and len(one.records()) > 0
    assert one.image.shape == (60, 90, 3)


def test_options_between_images_and_overrides_are_answered_with_the_right_order(capsys):
    words = ["predict", "--weights", "a.pth", "b.png", "--out", "c", "TEST.AUG.ENABLED", "True"]
    with pytest.raises(SystemExit):
        main(words)
    assert "KEY VALUE pairs stand right behind the images" in capsys.readouterr().err
