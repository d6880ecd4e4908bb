"""Preparing makes what is missing or stale, keeps the rest, and says what there is."""

import json
import os

import pytest

from groupdetr_d2.commands import run as main
from groupdetr_d2.data.nuscenes import preparing
from groupdetr_d2.data.nuscenes.preparing import index_path, load_index, prepare
from groupdetr_d2.data.nuscenes.tables import NuScenesError, Tables
from tests.data.nuscenes.tiny_copy import SCENES, token


def test_the_command_says_what_was_found(copy, capsys):
    root = copy()
    gone = sorted((root / "samples" / "CAM_BACK").iterdir())[0]
    gone.unlink()
    for path in sorted((root / "sweeps" / "CAM_FRONT").iterdir())[:3]:
        path.unlink()
    assert main(["prepare-nuscenes", "--root", str(root), "--version", "v1.0-mini"]) == 0
    printed = capsys.readouterr().out
    assert "mini_train: 1 scenes, 3 keyframes, 78 images" in printed
    assert "car 3, truck 3" in printed and "pedestrian 12" in printed
    first = f"samples/CAM_BACK/{gone.name} of sample {token('sample', 'scene-0061', 0)}\n"
    assert f"1 images of keyframes are absent, the first is {first}" in printed
    assert "3 images between keyframes are absent" in printed
    assert str(index_path(root, "v1.0-mini", "mini_val")) in printed


def test_a_finished_split_is_kept_after_an_interruption(copy, monkeypatch):
    root, write = copy(), preparing.write_index

    def stop(tables, split, index):
        if split == "mini_val":
            raise KeyboardInterrupt
        return write(tables, split, index)

    monkeypatch.setattr(preparing, "write_index", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, "v1.0-mini")
    written = []
    monkeypatch.setattr(preparing, "write_index", lambda *a: written.append(a[1]) or write(*a))
    assert [x.split for x in prepare(root, "v1.0-mini")] == ["mini_train", "mini_val"]
    assert written == ["mini_val"]
    monkeypatch.setattr(preparing, "read_content", None)  # nothing is left to read
    assert len(prepare(root, "v1.0-mini")) == 2


def test_an_index_of_other_tables_is_made_anew(copy, package_log):
    root = copy()
    prepare(root, "v1.0-mini")
    path = index_path(root, "v1.0-mini", "mini_train")
    assert load_index(path, Tables(root, "v1.0-mini").state()) is not None
    os.utime(root / "v1.0-mini" / "sample.json", ns=(1, 1))
    assert load_index(path, Tables(root, "v1.0-mini").state()) is None
    assert "is of other tables" in package_log.text
    prepare(root, "v1.0-mini")
    assert load_index(path, Tables(root, "v1.0-mini").state()) is not None
    path.write_bytes(b"PK")
    assert load_index(path, Tables(root, "v1.0-mini").state()) is None
    assert "damaged" in package_log.text


def test_splits_of_ones_own_are_prepared(copy):
    root = copy(version="v1.0-cubes")
    splits = {"cubes_train": [SCENES[0]], "cubes_val": [SCENES[1]], "none": ["scene-1"]}
    (root / "v1.0-cubes" / "splits.json").write_text(json.dumps(splits))
    found = prepare(root, "v1.0-cubes", progress=True)
    assert [(x.split, x.keyframes) for x in found] == [("cubes_train", 3), ("cubes_val", 3)]
    (root / "v1.0-cubes" / "splits.json").unlink()
    with pytest.raises(NuScenesError, match="has no splits"):
        prepare(root, "v1.0-cubes")


def test_a_folder_that_is_not_the_copy_can_hold_the_index(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPDETR_CACHE", str(tmp_path / "cache"))
    root = copy()
    prepare(root, "v1.0-mini")
    assert not (root / preparing.FOLDER).exists()
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2


def test_errors_have_no_traceback(tmp_path):
    with pytest.raises(SystemExit, match="error: .*v1.0-trainval does not exist"):
        main(["prepare-nuscenes", "--root", str(tmp_path)])
