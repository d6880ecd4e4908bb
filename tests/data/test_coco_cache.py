"""The file that keeps the columns of a large annotation file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from groupdetr_d2.data import coco_cache, coco_file
from groupdetr_d2.data.coco_columns import CocoImages
from tests.data.test_data import write_set


@pytest.fixture
def set_of_cocos_size(tmp_path, monkeypatch):
    """A small one that is taken for a large one."""
    monkeypatch.setenv("GROUPDETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(coco_file, "CACHED_SIZE", 0)
    coco_file._read_columns.cache_clear()
    yield write_set(tmp_path, "train", num_images=5)
    coco_file._read_columns.cache_clear()


def read_again(path):
    coco_file._read_columns.cache_clear()
    return coco_file.read_columns(path)


def dicts_of(columns):
    return list(CocoImages(columns, "images"))


@pytest.fixture
def parses(monkeypatch):
    """Counts how often a file is parsed."""
    count = []
    original = coco_file._read_or_raise
    monkeypatch.setattr(
        coco_file, "_read_or_raise", lambda *args: count.append(args) or original(*args)
    )
    return count


@pytest.mark.parametrize("texts", [False, True])
def test_a_file_is_parsed_once(set_of_cocos_size, parses, texts, tmp_path):
    path = set_of_cocos_size
    if texts:
        content = json.loads(open(path).read())
        for image in content["images"]:
            image["id"] = f"é {image['id']}"
        for a in content["annotations"]:
            a["image_id"] = f"é {a['image_id']}"
        (tmp_path / "train.json").write_text(json.dumps(content))
    first = read_again(path)
    again = read_again(path)
    assert len(parses) == 1
    assert dicts_of(again) == dicts_of(first) == dicts_of(coco_file.examine(path)[0])
    assert again.fingerprint == coco_file.examine(path)[0].fingerprint
    assert type(again.image_ids[0]) is (str if texts else int)


def test_a_link_to_a_file_has_the_same_columns(set_of_cocos_size, parses, tmp_path):
    """Others may read them, who share the folder."""
    first = read_again(set_of_cocos_size)
    (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
    again = read_again(str(tmp_path / "linked" / Path(set_of_cocos_size).name))
    assert len(parses) == 1 and again.fingerprint == first.fingerprint
    (kept,) = (tmp_path / "cache").glob("annotations/*")
    assert kept.stat().st_mode & 0o777 == 0o644


def test_a_changed_file_is_parsed_anew(set_of_cocos_size, parses, package_log, tmp_path):
    before = read_again(set_of_cocos_size)
    content = json.loads(open(set_of_cocos_size).read())
    content["annotations"][0]["bbox"] = [1, 1, 5, 5]
    (tmp_path / "train.json").write_text(json.dumps(content) + " ")
    after = read_again(set_of_cocos_size)
    assert len(parses) == 2 and after.fingerprint != before.fingerprint
    assert "is of an earlier annotation file: it is made anew" in package_log.text


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "text"])
def test_a_damaged_file_is_made_anew(set_of_cocos_size, parses, package_log, tmp_path, damage):
    before = dicts_of(read_again(set_of_cocos_size))
    (kept,) = (tmp_path / "cache" / "annotations").iterdir()
    content = bytearray(kept.read_bytes())
    content[-30] ^= 255
    changed = {"truncated": content[:-50], "flipped": content, "emptied": b"", "text": b"hello"}
    kept.write_bytes(changed[damage])
    assert dicts_of(read_again(set_of_cocos_size)) == before and len(parses) == 2
    assert "is damaged" in package_log.text and "it is made anew" in package_log.text
    assert dicts_of(read_again(set_of_cocos_size)) == before and len(parses) == 2


def test_a_folder_that_cannot_be_written_to_is_said(
    set_of_cocos_size, parses, package_log, monkeypatch
):
    monkeypatch.setenv("GROUPDETR_CACHE", "/proc/none")
    assert len(dicts_of(read_again(set_of_cocos_size))) == 5
    assert "cannot be kept" in package_log.text


def test_columns_are_mapped_and_not_copied(set_of_cocos_size):
    read_again(set_of_cocos_size)
    columns = read_again(set_of_cocos_size)
    assert not columns.boxes.flags.owndata
    assert isinstance(coco_cache.cache_folder(), os.PathLike)
    assert np.isfinite(columns.boxes).all()
