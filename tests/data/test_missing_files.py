"""A missing image file names the file that was probably meant."""

import json
import unicodedata

import cv2
import numpy as np
import pytest

from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.checks import DatasetError
from groupdetr_d2.data.inspection import inspect_coco
from groupdetr_d2.engine.setup import check_test_sets, settle_config
from groupdetr_d2.engine.training_data import load_training_set
from tests.data.test_data import custom_config, write_set

# what the json says, what there is
MEANT = {
    "a\\b.png": "a/b.png",
    "C:\\data\\b.png": "b.png",
    "/home/other/b.png": "b.png",
    "my%20photo.png": "my photo.png",
    "B.PNG": "b.png",
    unicodedata.normalize("NFD", "é.png"): unicodedata.normalize("NFC", "é.png"),
    "b": "b.png",
    "https://example.org/a/b.png": "b.png",
}


@pytest.mark.parametrize("wanted", MEANT)
def test_the_file_that_was_meant_is_named(tmp_path, wanted):
    path = write_set(tmp_path, "train", num_images=2)
    there = tmp_path / "images" / MEANT[wanted]
    there.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "x.png").rename(there)
    content = json.loads(open(path).read())
    content["images"][1]["file_name"] = wanted
    open(path, "w").write(json.dumps(content))
    cfg = custom_config(tmp_path, train=path)
    settle_config(cfg)
    with pytest.raises(DatasetError, match="1 of 2 image files are missing") as error:
        load_training_set(cfg)
    assert f"(was {there} meant?)" in str(error.value)
    found = inspect_coco(path, str(tmp_path / "images"))
    assert f"(was {there} meant?)" in "\n".join(map(str, found.findings))


@pytest.mark.parametrize("wanted", ["x" * 300 + ".png", "gone/gone.png", "../gone.png"])
def test_a_file_without_any_like_it_is_missing(tmp_path, wanted):
    path = write_set(tmp_path, "train", num_images=2)
    content = json.loads(open(path).read())
    content["images"][1]["file_name"] = wanted
    open(path, "w").write(json.dumps(content))
    found = inspect_coco(path, str(tmp_path / "images"))
    assert found.has_errors and "images missing" in str(found.findings[0])


def test_a_validation_set_without_objects_says_that_there_is_no_ap(tmp_path, package_log):
    val = write_set(tmp_path, "val", boxes=())
    cfg = custom_config(tmp_path, val=val)
    settle_config(cfg)
    check_test_sets(cfg)
    assert "no object is left: there are no annotations: AP cannot be computed" in package_log.text
    with pytest.raises(DatasetError, match="There is nothing to learn"):
        images_of(cfg.DATASETS.TEST[0])
