"""Registered splits of nuScenes, and their frames."""

import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from groupdetr_d2.data.checks import DatasetError
from groupdetr_d2.data.nuscenes import catalog
from groupdetr_d2.data.nuscenes.catalog import frames_of, register_nuscenes, register_split
from groupdetr_d2.data.nuscenes.names import CLASSES
from groupdetr_d2.data.nuscenes.preparing import index_path, prepare
from groupdetr_d2.data.nuscenes.tables import NuScenesError
from tests.data.nuscenes.tiny_copy import write_copy


@pytest.fixture
def register():
    names = []

    def make(name, *rest, **named):
        register_split(name, *rest, **named)
        names.append(name)

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_official_sets_are_registered_once():
    register_nuscenes()
    metadata = MetadataCatalog.get("nuscenes_val")
    assert metadata.evaluator_type == "nuscenes" and metadata.thing_classes == list(CLASSES)
    assert metadata.nuscenes_version == "v1.0-trainval" and metadata.nuscenes_split == "val"
    assert MetadataCatalog.get("nuscenes_mini_train").nuscenes_version == "v1.0-mini"


def test_the_folder_is_looked_up_when_it_is_used(tmp_path, monkeypatch):
    write_copy(tmp_path / "nuscenes")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    frames = DatasetCatalog.get("nuscenes_mini_val")
    assert frames.scenes == ["scene-0103"] and os.path.isfile(frames[0]["file_name"])
    root = MetadataCatalog.get("nuscenes_mini_val").nuscenes_root
    assert str(root) == os.path.join(root) == str(tmp_path / "nuscenes")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "gone"))
    with pytest.raises(NuScenesError, match="nuscenes_mini_val: .*DETECTRON2_DATASETS"):
        frames_of("nuscenes_mini_val")


def test_an_index_is_opened_once_and_followed(copy, register, monkeypatch):
    root = copy()
    register("tiny_val", root, "v1.0-mini", "mini_val")
    frames = frames_of("tiny_val")
    monkeypatch.setattr(catalog, "read_content", None)
    assert frames_of("tiny_val") is frames
    monkeypatch.undo()
    os.utime(root / "v1.0-mini" / "scene.json", ns=(5, 5))
    again = frames_of("tiny_val")
    assert again is not frames and again.fingerprint == frames.fingerprint


def test_large_tables_are_not_read_unasked(copy, register, monkeypatch):
    root = copy()
    monkeypatch.setattr(catalog, "QUICK", 0)
    register("tiny_val", root, "v1.0-mini", "mini_val")
    command = f"prepare-nuscenes --root {root} --version v1.0-mini"
    with pytest.raises(NuScenesError, match=f"tiny_val: .*does not exist.*{command}"):
        frames_of("tiny_val")
    prepare(root, "v1.0-mini")
    assert len(frames_of("tiny_val")) == 3
    os.utime(root / "v1.0-mini" / "scene.json", ns=(5, 5))
    with pytest.raises(NuScenesError, match=f"of other tables.*{command}"):
        frames_of("tiny_val")


def test_an_index_that_cannot_be_written_stays_in_memory(copy, register, package_log):
    root = copy()
    index_path(root, "v1.0-mini", "mini_val").parent.write_text("no folder")
    register("tiny_val", root, "v1.0-mini", "mini_val")
    assert len(frames_of("tiny_val")) == 3 and "makes it again" in package_log.text


def test_generated_sets_are_prepared_first(tmp_path, register):
    root = tmp_path / "made"
    register("tiny_val", root, "v1.0-mini", "mini_val", prepare=lambda: write_copy(root))
    assert MetadataCatalog.get("tiny_val").is_generated
    assert len(frames_of("tiny_val")) == 3


def test_other_sets_are_refused():
    with pytest.raises(DatasetError, match="nuscenes_trian is not registered.*nuscenes_train"):
        frames_of("nuscenes_trian")
    with pytest.raises(NuScenesError, match="coco_2017_val is none of nuScenes"):
        frames_of("coco_2017_val")
