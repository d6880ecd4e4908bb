"""An index comes back from its file as it was written, or is refused."""

import dataclasses
import zipfile

import numpy as np
import pytest

from groupdetr_d2.data.nuscenes import index_file
from groupdetr_d2.data.nuscenes.building import build_index, read_content
from groupdetr_d2.data.nuscenes.index import NuScenesFrames
from groupdetr_d2.data.nuscenes.index_file import Texts, arrays_of, open_index, save_index
from groupdetr_d2.data.nuscenes.tables import NuScenesError, Tables


@pytest.fixture
def built(tiny_root):
    return build_index(read_content(Tables(tiny_root, "v1.0-mini")), ["scene-0103"])


def test_texts_of_any_length_and_script_come_back():
    texts = ["a", "", "Straße/日本.jpg", "end"]
    packed = Texts.of(texts)
    assert list(packed) == texts and packed[-1] == "end" and packed[1:3] == texts[1:3]
    assert len(Texts.of([])) == 0
    with pytest.raises(IndexError):
        packed[4]


@pytest.mark.parametrize("small", [0, 1 << 22])
def test_an_index_comes_back(built, tmp_path, monkeypatch, small):
    """Whether arrays are mapped or read."""
    monkeypatch.setattr(index_file, "SMALL", small)
    path = tmp_path / "deep" / "a.npz"
    again = save_index(path, built, split="x")
    assert again.path == path and again.header["split"] == "x"
    assert again.fingerprint == built.fingerprint
    for name, array in arrays_of(built).items():
        other = arrays_of(again)[name]
        assert other.dtype == array.dtype
        np.testing.assert_array_equal(other, array)
    mine, theirs = NuScenesFrames(built, "r")[1], NuScenesFrames(again, "r")[1]
    assert mine["annotations"] == theirs["annotations"]
    np.testing.assert_array_equal(mine["views"][2]["lidar2img"], theirs["views"][2]["lidar2img"])
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]
    with np.load(path, allow_pickle=False) as plain:  # numpy reads it, too
        np.testing.assert_array_equal(plain["boxes"], built.boxes)


def test_the_fingerprint_is_that_of_the_content(built):
    other = dataclasses.replace(built, boxes=built.boxes + 1e-9)
    assert other.fingerprint != built.fingerprint
    assert dataclasses.replace(built, header={"state": 3}).fingerprint == built.fingerprint


@pytest.mark.parametrize("kind", ["cut", "empty", "missing", "format", "compressed", "pickled"])
def test_a_damaged_index_is_named(built, tmp_path, kind, monkeypatch):
    path = tmp_path / "a.npz"
    save_index(path, built)
    if kind == "format":
        monkeypatch.setattr(index_file, "FORMAT", 0)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing":
        path.unlink()
    elif kind == "compressed":
        np.savez_compressed(path, header=np.zeros(3, np.uint8))
    elif kind == "pickled":
        with zipfile.ZipFile(path, "w") as archive, archive.open("header.npy", "w") as member:
            np.lib.format.write_array(member, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(NuScenesError, match=r"a\.npz.*(damaged|another version)"):
        open_index(path)


def test_an_interrupted_writing_leaves_nothing(built, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        save_index(tmp_path / "a.npz", built)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(built, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NuScenesError, match="GROUPDETR_CACHE"):
        save_index(tmp_path / "file" / "a.npz", built)


def test_another_process_notices_that_an_index_was_made_anew(built, tmp_path):
    path = tmp_path / "a.npz"
    opened, (place, fingerprint) = save_index(path, built).__reduce__()
    assert opened(place, fingerprint).fingerprint == built.fingerprint
    with pytest.raises(NuScenesError, match="made anew while it was used"):
        opened(place, "another")


def test_an_index_of_all_training_scenes_is_small(built):
    """Bytes of an image, a keyframe and a box, times what nuScenes' training split has at most."""
    numbers = {"image": 1_010_000, "key": 28_130, "box": 950_000}
    rows = {"image": built.image_time, "key": built.key_time, "box": built.box_class}
    total = 0.0
    for name, array in arrays_of(built).items():
        kind = name.partition("_")[0].removesuffix("es")
        if kind in rows:
            total += array.nbytes / len(rows[kind]) * numbers[kind]
    drive = "n008-2018-08-01-15-16-36-0400"
    longest = f"samples/CAM_FRONT_RIGHT/{drive}__CAM_FRONT_RIGHT__1533151603520482.jpg"
    own = sum(map(len, built.image_names)) / len(built.image_time)
    total += (len(longest) - own) * numbers["image"]
    assert 150e6 < total < 300e6
