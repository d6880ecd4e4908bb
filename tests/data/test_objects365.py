"""Objects365: the 5k rule, ids, what is missing, and the sets that are trained on."""

import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from groupdetr_d2.commands import run as main
from groupdetr_d2.data import coco_cache, coco_file, objects365_files
from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.checks import DatasetError
from groupdetr_d2.data.coco_columns import CocoImages
from groupdetr_d2.data.loader import TrainingSet, build_train_loader
from groupdetr_d2.data.objects365 import FILES, TRAIN, VAL, register_objects365
from groupdetr_d2.data.objects365_preparing import EXPECTED, prepare
from groupdetr_d2.engine.training_data import load_training_set
from groupdetr_d2.tasks.boxes import BOXES
from tests.conftest import small_config
from tests.data.objects365_names import NAMES

CLASSES = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
# ids of the two lists are neither in order nor apart
TRAIN_IDS, VAL_IDS = (7, 3, 11, 5), (20, 3, 9, 12, 1)
TRAIN_PATCHES, VAL_PATCHES = ("v1/patch0", "v1/patch0", "v2/patch16", "v1/patch6"), ("v1/patch1",)
SIZE = (40, 60)


@pytest.fixture(autouse=True)
def fresh_registration(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPDETR_CACHE", str(tmp_path / "cache"))
    yield
    register_objects365()


def image(identity, patch):
    edition = patch.split("/")[0]
    name = f"images/{patch}/objects365_{edition}_{identity:08d}.jpg"
    return {"id": identity, "file_name": name, "height": SIZE[0], "width": SIZE[1], "license": 5}


def box(number, image_id, *corners, category=1, iscrowd=0):
    corners = corners or (2 + number % 5, 3, 20.5, 30)
    area = float(corners[2] * corners[3])
    more = {"isfake": 0, "isreflected": 0, "iscrowd": iscrowd}
    own = {"id": number, "image_id": image_id, "category_id": category}
    return {**own, "bbox": list(corners), "area": area, **more}


def write_copy(root, *, classes=CLASSES, pictures=True):
    """A copy whose training file has two bad boxes and one of an unknown image."""
    lists = {
        "train": [image(x, y) for x, y in zip(TRAIN_IDS, TRAIN_PATCHES, strict=True)],
        "val": [image(x, VAL_PATCHES[0]) for x in VAL_IDS],
    }
    lists["train"][3]["file_name"] = "images/v1/patch6/objects365_v1_00320532.jpg"
    bad = [box(90, 7, 70, 3, 5, 5), box(91, 7, 2, 2, 0, 5), box(92, 999)]
    for split, images in lists.items():
        boxes = [box(i, x["id"], category=i + 1) for i, x in enumerate(images)]
        boxes += [box(50 + i, x["id"], iscrowd=1) for i, x in enumerate(images[:2])]
        boxes += bad if split == "train" else []
        boxes += [box(60, 20, -5, -5, 200, 200)] if split == "val" else []
        (root / split).mkdir(parents=True)
        content = {"images": images, "annotations": boxes, "categories": classes[::-1]}
        (root / split / f"zhiyuan_objv2_{split}.json").write_text(json.dumps(content))
        for x in images if pictures else ():
            path = root / split / x["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((*SIZE, 3), 90, np.uint8))
    (root / "train" / lists["train"][3]["file_name"]).unlink(missing_ok=True)
    return root


def read(root, name):
    return json.loads((root / FILES[name]).read_text())


def names_of(content):
    return [x["file_name"].split("_")[-1][:-4].lstrip("0") for x in content["images"]]


def test_the_first_images_of_the_list_stay_validation(tmp_path):
    """In the order of the list, which is not that of their ids."""
    root = write_copy(tmp_path)
    summary = prepare(root, held_out=2)
    train, val = read(root, TRAIN), read(root, VAL)
    assert names_of(val) == ["20", "3"] and names_of(train) == ["7", "3", "11", "9", "12", "1"]
    assert val["images"][0] == {
        "id": 20,
        "file_name": "val/images/v1/patch1/objects365_v1_00000020.jpg",
        "width": 60,
        "height": 40,
    }
    assert train["images"][2]["file_name"].startswith("train/images/v2/patch16/")
    assert train["categories"] == val["categories"] == CLASSES
    assert [x["image_id"] for x in val["annotations"]] == [20, 3, 20, 3, 20]
    assert [x["id"] for x in val["annotations"]] == [0, 1, 50, 51, 60]
    text = str(summary)
    assert f"warning: {EXPECTED['train'] - 4} images fewer than the 1742289" in text
    assert "left out, in no archive: images/v1/patch6/objects365_v1_00320532.jpg" in text
    assert (
        "2 boxes were left out that have no area" in text
        and "[70.0, 3.0, 5.0, 5.0] for one" in text
    )
    assert "1 boxes of images in no list" in text
    assert f"{TRAIN}: 6 images, 8 boxes (2 of crowds)" in text
    assert f"{VAL}: 2 images, 5 boxes (2 of crowds)" in text
    assert not list(root.glob("*.unfinished"))


def test_ids_stay_unique(tmp_path):
    """Image 3 is in both files, but held out; with one image held out its id is taken."""
    root = write_copy(tmp_path)
    assert prepare(root, held_out=2).written[TRAIN].renumbered == 0
    assert [x["id"] for x in read(root, TRAIN)["images"]] == [7, 3, 11, 9, 12, 1]
    summary = prepare(root, held_out=1)
    assert "4 images have new ids" in str(summary)
    content = read(root, TRAIN)
    ids = [x["id"] for x in content["images"]]
    assert ids == [7, 3, 11, 21, 22, 23, 24] and names_of(content)[3:] == ["3", "9", "12", "1"]
    own = {x["id"]: x["category_id"] for x in content["annotations"]}
    assert list(own) == list(range(1, len(own) + 1))
    of_moved = [x["category_id"] for x in content["annotations"] if x["image_id"] > 20]
    assert sorted(of_moved) == [1, 2, 3, 4, 5]  # each box went with its image
    boxes = {x["image_id"]: x["category_id"] for x in content["annotations"] if x["iscrowd"] == 0}
    assert boxes == {7: 1, 3: 2, 11: 3, 21: 2, 22: 3, 23: 4, 24: 5}


def test_what_is_kept_for_later_runs_is_what_the_file_says(tmp_path, monkeypatch):
    root = write_copy(tmp_path)
    for module in (objects365_files, coco_file):
        monkeypatch.setattr(module, "CACHED_SIZE", 1)
    monkeypatch.setattr(objects365_files, "PIECE", 3)
    summary = prepare(root, held_out=1)
    path = str(root / FILES[TRAIN])
    assert f"annotations for later runs: {coco_cache.cache_path(path)}" in str(summary)
    fresh, _ = coco_file.examine(path)
    monkeypatch.setattr(coco_file, "examine", None)  # it is not read again
    kept = coco_file.read_columns(path)
    assert kept.fingerprint == fresh.fingerprint and kept.image_ids == fresh.image_ids
    assert np.array_equal(kept.annotation_ids, fresh.annotation_ids)
    assert np.array_equal(kept.areas, fresh.areas) and kept.category_ids == fresh.category_ids
    is_out = np.arange(len(kept.boxes)) == 2
    assert kept.without(is_out).annotation_ids.tolist() == fresh.without(is_out).annotation_ids
    assert kept.place(2) == fresh.place(2)


def test_what_is_missing_is_named(tmp_path):
    root = write_copy(tmp_path)
    for path in (root / "train/images/v2/patch16").iterdir():
        path.unlink()
    (root / "val/images/v1/patch1/objects365_v1_00000012.jpg").unlink()
    text = str(prepare(root, held_out=2))
    assert "nothing is there of train/images/v2/patch16 (1 images)" in text
    assert "unpack there what has not been: patch16.tar.gz" in text
    example = "val/images/v1/patch1/objects365_v1_00000012.jpg"
    assert f"1 images are missing, {example} for one" in text
    assert "by folder: val/images/v1/patch1 1" in text
    assert "images are missing" not in str(prepare(root, held_out=2, checks_images=False))
    prepare(root, held_out=2, leaves_out_missing=True)
    assert names_of(read(root, TRAIN)) == ["7", "3", "9", "1"]
    with pytest.raises(SystemExit, match="zhiyuan_objv2_train.json is missing: it was looked for"):
        main(["prepare-objects365", "--root", str(root / "gone")])


def test_archives_may_be_unpacked_without_their_upper_folders(tmp_path):
    root = write_copy(tmp_path)
    (root / "train/images/v1/patch0").rename(root / "train/patch0")
    assert "images are missing" not in str(prepare(root, held_out=2))
    names = [x["file_name"] for x in read(root, TRAIN)["images"]]
    assert names[0] == "train/patch0/objects365_v1_00000007.jpg"
    assert names[2].startswith("train/images/v2/patch16/")


def edited(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_other_files_are_refused(tmp_path):
    root = write_copy(tmp_path, pictures=False)
    path = root / "val/zhiyuan_objv2_val.json"
    right = json.loads(path.read_text())
    first_edition = [{"id": i, "name": x} for i, x in enumerate(("person", "sneakers", "chair"), 1)]
    first_edition += [{"id": 4, "name": "hat"}, {"id": 5, "name": "lamp"}]
    swapped = [*CLASSES[:-2], {"id": 364, "name": "Table Tennis"}, {"id": 365, "name": "Curling"}]
    wrong = {
        "is of Objects365 v1 of 2019": {"categories": first_edition},
        "none of Objects365 v2: it has 364 classes": {"categories": CLASSES[:-1]},
        "they are no pair": {"categories": swapped},
        "values of 'id' are of several images": {"images": [*right["images"], right["images"][0]]},
        "has the category 366, which is none": {"annotations": [box(1, 20, category=366)]},
        "the annotation .*Expected `int`": {"annotations": [box(1, "a")]},
        "is no annotation file of Objects365": {"images": 3},
        "has 1 images, of which 2 are to be held out": {"images": right["images"][:1]},
    }
    for message, changes in wrong.items():
        path.write_text(json.dumps({**right, **changes}))
        with pytest.raises(DatasetError, match=message):
            prepare(root, held_out=2, checks_images=False)
    assert not list(root.glob("*objv2*"))


def test_the_sets_are_registered_and_say_how_to_make_them(tmp_path):
    assert {TRAIN, VAL} <= set(DatasetCatalog.list())
    register_objects365(tmp_path)
    message = f"{TRAIN}.json does not exist. Make it once: python -m groupdetr_d2 prepare-objects"
    with pytest.raises(DatasetError, match=message.replace(f"{TRAIN}.json", FILES[TRAIN])):
        images_of(TRAIN)
    with pytest.raises(DatasetError, match="prepare-objects365 --root"):
        DatasetCatalog.get(VAL)


def test_training_goes_on_without_what_cannot_be_read(tmp_path, package_log):
    root = write_copy(tmp_path)
    (root / "train/images/v2/patch16/objects365_v2_00000011.jpg").write_bytes(b"no picture")
    (root / "val/images/v1/patch1/objects365_v1_00000012.jpg").unlink()
    prepare(root, held_out=2)
    register_objects365(root)
    config = "configs/DINO/dino_4scale_ViT_B_objects365_24ep.yaml"
    cfg = small_config(config, 1, "INPUT.CROP.ENABLED", False)
    assert cfg.DATASETS.TRAIN == (TRAIN,) and cfg.DATASETS.TEST == (VAL,)
    assert cfg.DATALOADER.ON_ERROR == "skip"
    BOXES.data.check_classes(cfg, cfg.DATASETS.TEST)
    images = load_training_set(cfg)
    assert len(images) == 6 and isinstance(images.parts[0], CocoImages)
    assert "1 of 6 image files are missing" in package_log.text
    assert MetadataCatalog.get(TRAIN).thing_classes == [x["name"] for x in CLASSES]
    assert {a["category_id"] for d in images for a in d["annotations"]} == {0, 1, 2, 3, 4}
    loader = build_train_loader(cfg, TrainingSet(images), BOXES.build_mapper(cfg, is_train=True))
    items = [x for _, batch in zip(range(9), loader, strict=False) for x in batch]
    skipped = {text for x in items for text in x["skipped"]}
    assert len(skipped) == 2 and all(len(x["instances"]) >= 0 for x in items)
    assert any("00000011" in x for x in skipped) and any("00000012" in x for x in skipped)
    assert len(images_of(VAL, is_evaluated=True)) == 2
    assert len(images_of(VAL, is_evaluated=True).columns.boxes) == 5  # one reaches over its image
