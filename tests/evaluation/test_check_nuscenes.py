"""check-data --nuscenes reports on a copy, and returns 1 where it has errors."""

import json
import re
from pathlib import Path

import cv2
import pytest

from groupdetr_d2.commands import build_parser
from groupdetr_d2.commands import run as main
from groupdetr_d2.data.nuscenes.catalog import open_frames
from groupdetr_d2.evaluation.frame_sheet import draw_frame_sheet
from groupdetr_d2.evaluation.nuscenes_data_report import check_nuscenes_data
from groupdetr_d2.tasks.boxes3d import BOXES3D
from tests.data.nuscenes.tiny_copy import write_copy


def test_the_command_reports_and_returns_1_on_errors(tmp_path, capsys):
    root, out = tmp_path / "nuscenes", tmp_path / "out"
    write_copy(root)
    arguments = ["check-data", "--nuscenes", str(root), "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "keyframes: 6" in printed and "car: 6" in printed and "no errors" in printed
    next((root / "samples" / "CAM_FRONT").iterdir()).unlink()
    assert main([*arguments, "--version", "v1.0-mini"]) == 1
    assert "images of keyframes missing" in capsys.readouterr().out
    report = json.loads((out / "v1.0-mini_report.json").read_text())
    assert [f["is_error"] for f in report["findings"]] == [True]
    assert report["numbers"]["scenes"] == 2
    with pytest.raises(SystemExit, match="v1.0-trainval does not exist.*has v1.0-mini"):
        main([*arguments, "--version", "v1.0-trainval"])


def test_a_version_is_asked_for_where_there_is_none_or_two(tmp_path):
    arguments = ["check-data", "--nuscenes", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="tables of no version: name one with --version"):
        main(arguments)
    for version in ("v1.0-mini", "v1.0-own"):
        write_copy(tmp_path, version=version)
    with pytest.raises(SystemExit, match="tables of v1.0-mini, v1.0-own"):
        main(arguments)


def test_pictures_are_drawn_of_good_copies(tmp_path, capsys):
    root, drawn = tmp_path / "nuscenes", []
    write_copy(root)

    def draw(frames, path):
        drawn.append((len(frames), path.name))
        return True

    words = ["check-data", "--nuscenes", str(root), "--out", str(tmp_path / "out"), "--fast"]
    args = build_parser().parse_args(words)
    assert check_nuscenes_data(args, draw) == 0 and drawn == [(6, "v1.0-mini_sheet.jpg")]
    printed = capsys.readouterr().out
    assert "pictures: " in printed and "images opened: 0" in printed
    assert "labels of 6 keyframes" in printed and re.search(r"all +6 +72 ", printed)
    assert check_nuscenes_data(args, lambda *_: 1 / 0) == 0
    assert "pictures cannot be drawn: ZeroDivisionError" in capsys.readouterr().out


def test_pictures_are_drawn_despite_errors_if_tables_allow_it(tmp_path, capsys):
    """An absent photograph costs its keyframe alone; broken tables cost them all."""
    root, out = tmp_path / "nuscenes", tmp_path / "out"
    write_copy(root)
    next((root / "samples" / "CAM_FRONT").iterdir()).unlink()
    assert main(["check-data", "--nuscenes", str(root), "--out", str(out), "--fast"]) == 1
    assert f"pictures: {out}/v1.0-mini_sheet.jpg" in capsys.readouterr().out
    (root / "v1.0-mini" / "sample.json").write_text("[{")
    assert main(["check-data", "--nuscenes", str(root), "--out", str(out), "--fast"]) == 1
    assert "pictures cannot be drawn before the errors are mended" in capsys.readouterr().out


def test_a_keyframe_whose_photograph_cannot_be_read_is_left_out_of_the_sheet(tmp_path):
    root, path = tmp_path / "nuscenes", tmp_path / "sheet.jpg"
    write_copy(root)
    frames = open_frames(root, "v1.0-mini", "mini_train")
    assert draw_frame_sheet(BOXES3D.presentation, frames, path)
    whole = cv2.imread(str(path)).shape[0]
    Path(frames[0]["views"][3]["file_name"]).write_bytes(b"no photograph")
    assert draw_frame_sheet(BOXES3D.presentation, frames, path)
    assert cv2.imread(str(path)).shape[0] == whole * (len(frames) - 1) // len(frames)
