import itertools
import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from groupdetr_d2.config import build_config
from groupdetr_d2.data.augmentation import build_augmentation
from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.checks import DatasetError
from groupdetr_d2.data.coco_file import read_columns
from groupdetr_d2.data.custom import register_custom_datasets
from groupdetr_d2.data.loader import (
    ImageReadError,
    TrainingSampler,
    TrainingSet,
    build_test_loader,
    build_train_loader,
)
from groupdetr_d2.data.segmentations import bitmap
from groupdetr_d2.data.shapes import (
    CLASSES,
    SPECS,
    ShapesSpec,
    draw_image,
    generate_shapes,
    register_shapes,
    register_spec,
)
from groupdetr_d2.engine.setup import settle_config
from groupdetr_d2.engine.training_data import load_training_set
from groupdetr_d2.errors import UserError
from groupdetr_d2.tasks.boxes import BOXES
from tests.conftest import small_config

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 30, "name": "dog"}]


def write_set(folder, name, boxes=((2, 3, 10, 8),), categories=CATEGORIES, num_images=3, **wrong):
    """A COCO json with ids that are neither contiguous nor start at 1, and its images."""
    (folder / "images").mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(num_images):
        size = (40, 60) if i % 2 else (60, 40)
        file_name = f"{name}_{i}.png"
        noise = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / file_name), noise)
        images.append({"id": 10 + i, "file_name": file_name, "height": size[0], "width": size[1]})
        for box in boxes if i else ():  # the first image is empty
            annotation = {"id": len(annotations) + 1, "image_id": 10 + i, "bbox": list(box)}
            annotation |= {"category_id": categories[i % 2]["id"], "area": 80, "iscrowd": 0}
            annotations.append(annotation | wrong)
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path)


def custom_config(tmp_path, *opts, **files):
    paths = {
        "TRAIN_JSON": files.get("train") or write_set(tmp_path, "train"),
        "TRAIN_IMAGES": str(tmp_path / "images"),
        "VAL_JSON": files.get("val") or write_set(tmp_path, "val"),
        "VAL_IMAGES": str(tmp_path / "images"),
    }
    flat = [x for key, path in paths.items() for x in (f"DATASETS.CUSTOM.{key}", path)]
    return small_config("configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml", 1, *flat, *opts)


def test_own_data_needs_no_code(tmp_path):
    cfg = custom_config(tmp_path)
    settle_config(cfg)
    assert cfg.MODEL.DETR.NUM_CLASSES == 2
    BOXES.data.check_classes(cfg, cfg.DATASETS.TRAIN)
    dicts = load_training_set(cfg)
    assert len(dicts) == 3 and {a["category_id"] for d in dicts for a in d["annotations"]} == {0, 1}
    assert MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes == ["cat", "dog"]
    batch = next(
        iter(build_train_loader(cfg, TrainingSet(dicts), BOXES.build_mapper(cfg, is_train=True)))
    )
    assert len(batch) == 2 and batch[0]["image"].dtype == torch.uint8
    assert (
        len(
            list(
                build_test_loader(
                    cfg, images_of(cfg.DATASETS.TEST[0]), BOXES.build_mapper(cfg, False)
                )
            )
        )
        == 3
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p.unlink(), "train.json does not exist"),
        (lambda p: p.write_text("{"), "train.json is not valid JSON"),
        (lambda p: p.write_text("[]"), "the JSON is a list"),
        (lambda p: p.write_text('{"images": []}'), "no list: 'annotations'; 'categories'"),
    ],
)
def test_malformed_annotation_files_are_named(tmp_path, change, message):
    cfg = custom_config(tmp_path)
    change(tmp_path / "train.json")
    with pytest.raises(DatasetError, match=message):
        register_custom_datasets(cfg)


def test_missing_folders_and_files_are_named(tmp_path):
    cfg = custom_config(tmp_path, "DATASETS.CUSTOM.TRAIN_IMAGES", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="nowhere .* does not exist"):
        settle_config(cfg)
    cfg = custom_config(tmp_path, "DATASETS.CUSTOM.TRAIN_IMAGES", "")
    with pytest.raises(DatasetError, match="--train-images"):
        settle_config(cfg)
    cfg = custom_config(tmp_path)
    settle_config(cfg)
    (tmp_path / "images" / "train_1.png").unlink()
    with pytest.raises(DatasetError, match="1 of 3 image files are missing.*train_1.png"):
        load_training_set(cfg)


def test_ids_that_match_nothing_are_named(tmp_path):
    with pytest.raises(
        DatasetError, match="unknown category: annotation 1 has category_id 99.*are 7, 30"
    ):
        read_columns(write_set(tmp_path, "train", category_id=99))
    with pytest.raises(
        DatasetError, match="unknown image: annotation 1 has image_id 5.*are 10, 11, 12"
    ):
        read_columns(write_set(tmp_path, "train", image_id=5))


@pytest.mark.parametrize(
    "key, field", [("annotations", "iscrowd"), ("annotations", "bbox"), ("images", "width")]
)
def test_fields_that_training_or_evaluation_needs_are_named(tmp_path, key, field):
    path = write_set(tmp_path, "train")
    content = json.loads(open(path).read())
    del content[key][1][field]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=f"train.json: {key} without '{field}'"):
        read_columns(path)
    content[key][1] = content[key][0]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=f"{key} share an id: id 1"):
        read_columns(path)


def test_sets_with_different_classes_are_named(tmp_path):
    other = [{"id": 7, "name": "cat"}, {"id": 30, "name": "horse"}]
    cfg = custom_config(tmp_path, val=write_set(tmp_path, "val", categories=other))
    with pytest.raises(DatasetError, match="different categories.*dog.*horse"):
        register_custom_datasets(cfg)


def test_a_number_of_classes_unlike_the_data_is_named(tmp_path):
    cfg = custom_config(tmp_path)
    settle_config(cfg)
    cfg.MODEL.DETR.NUM_CLASSES = 80
    with pytest.raises(DatasetError, match="NUM_CLASSES is 80.*has 2 classes.*NUM_CLASSES 2"):
        BOXES.data.check_classes(cfg, cfg.DATASETS.TRAIN)


@pytest.mark.parametrize(
    "box", [(5, 5, 0, 8), (5, 5, 8, -2), (500, 5, 8, 8), (5, -20, 8, 8), (5, float("nan"), 8, 8)]
)
def test_bad_boxes_are_named_or_left_out(tmp_path, box):
    train = write_set(tmp_path, "train", boxes=[(2, 3, 10, 8), box])
    cfg = custom_config(tmp_path, train=train)
    settle_config(cfg)
    with pytest.raises(
        DatasetError, match="boxes .x, y, w, h. that are not finite.*train_1.png.*BAD_BOXES drop"
    ):
        load_training_set(cfg)
    cfg = custom_config(tmp_path, "DATASETS.CUSTOM.BAD_BOXES", "drop", train=train)
    settle_config(cfg)
    assert [len(d["annotations"]) for d in load_training_set(cfg)] == [0, 1, 1]


def test_boxes_partly_outside_are_kept(tmp_path):
    train = write_set(tmp_path, "train", boxes=[(-3, -3, 20, 20), (30, 30, 40, 40)])
    cfg = custom_config(tmp_path, train=train)
    settle_config(cfg)
    name = cfg.DATASETS.TRAIN[0]
    assert list(images_of(name)) == DatasetCatalog.get(name)
    assert [len(d["annotations"]) for d in images_of(name)] == [0, 2, 2]


@pytest.mark.parametrize("content", [b"", b"\x89PNG no picture", None])
def test_an_image_that_cannot_be_read_is_named(tmp_path, content):
    cfg = custom_config(tmp_path)
    settle_config(cfg)
    dicts = load_training_set(cfg)
    for path in (tmp_path / "images").glob("train_*.png"):
        if content is None:  # readable, but not of the recorded size
            cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8))
        else:
            path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"train_\d.png cannot be used.*Mend or replace"):
        next(
            iter(
                build_train_loader(cfg, TrainingSet(dicts), BOXES.build_mapper(cfg, is_train=True))
            )
        )


def test_batches_depend_on_seed_and_iteration_alone(tmp_path):
    """Whatever the number of workers, and when the loader starts later."""
    cfg = custom_config(tmp_path, "INPUT.MIN_SIZE_TRAIN", (30, 40, 50))
    settle_config(cfg)
    dicts = load_training_set(cfg)

    def batches(start, number):
        loader = iter(
            build_train_loader(
                cfg, TrainingSet(dicts), BOXES.build_mapper(cfg, is_train=True), start
            )
        )
        return [next(loader) for _ in range(number)]

    everything = batches(0, 6)
    later = batches(4, 2)
    cfg.DATALOADER.NUM_WORKERS = 2
    with_workers = batches(0, 6)
    for a, b in [
        *zip(everything[4:], later, strict=True),
        *zip(everything, with_workers, strict=True),
    ]:
        for x, y in zip(a, b, strict=True):
            assert x["file_name"] == y["file_name"] and torch.equal(x["image"], y["image"])


def test_sampler_gives_every_image_once_an_epoch_and_does_not_mix_shapes():
    is_wide = [i % 3 == 0 for i in range(12)]
    arguments = {"is_wide": is_wide, "batch_size": 2, "seed": 5, "world_size": 2}
    streams = [
        list(itertools.islice(TrainingSampler(12, rank=rank, **arguments), 40)) for rank in (0, 1)
    ]
    for stream in streams:
        indices = [key % 12 for key in stream]
        assert all(
            is_wide[a] == is_wide[b] for a, b in zip(indices[::2], indices[1::2], strict=True)
        )
    keys = set(streams[0]) | set(streams[1])
    assert len(keys) == 80  # no draw is seen by two processes
    resumed = TrainingSampler(12, rank=1, start_iter=7, **arguments)
    assert list(itertools.islice(resumed, 10)) == streams[1][14:24]


def test_detr_augmentation_is_the_official_one():
    cfg = build_config("configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml")
    flip, crop, resize = build_augmentation(cfg, is_train=True)
    resize = resize.resize
    assert resize.short_edge_length[0] == 480 and resize.short_edge_length[-1] == 800
    assert len(resize.short_edge_length) == 11 and resize.max_size == 1333 and not resize.is_range
    assert crop.prob == 0.5
    before, cut = crop.aug.augs
    assert before.resize.short_edge_length == [400, 500, 600] and before.resize.max_size > 10**4
    assert list(cut.crop_size) == [384, 600] and cut.crop_type == "absolute_range"
    (test_resize,) = build_augmentation(cfg, is_train=False)
    test_resize = test_resize.resize
    assert test_resize.short_edge_length == (800, 800) and test_resize.max_size == 1333


def test_shapes_are_the_same_for_a_seed_and_made_once(tmp_path):
    spec = ShapesSpec("train", 5, image_size=64, max_objects=6, seed=3)
    folder = generate_shapes(spec, tmp_path)
    stamp = (folder / "annotations.json").stat().st_mtime_ns
    assert generate_shapes(spec, tmp_path) == folder
    assert (folder / "annotations.json").stat().st_mtime_ns == stamp
    content = json.loads((folder / "annotations.json").read_text())
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        assert w > 2 and h > 2 and x >= 0 and y >= 0 and x + w <= 64 and y + h <= 64
    first, objects, owner = draw_image(np.random.default_rng([3, 0]), spec)
    again, *_ = draw_image(np.random.default_rng([3, 0]), spec)
    assert np.array_equal(first, again) and 1 <= len(objects) <= 6
    masks = read_columns(str(folder / "annotations.json"), with_masks=True).segmentations
    assert not masks.problems.any()
    drawn = np.stack([bitmap(masks[i], (64, 64)) for i in range(len(objects))])
    assert np.array_equal(drawn, owner == np.arange(len(objects))[:, None, None])
    assert not list(tmp_path.glob("tmp*"))


def test_generated_classes_can_be_chosen(tmp_path, monkeypatch):
    """Only these are drawn, and they are the categories, in their order."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    opts = ["DATASETS.SHAPES.CLASSES", ["cross", "circle"], "DATASETS.SHAPES.NUM_TRAIN", 2]
    cfg = small_config(
        "configs/quick_start/conditional_detr_shapes.yaml",
        1,
        "DATASETS.TRAIN",
        ("shapes_train",),
        *opts,
    )
    register_shapes(cfg)
    dicts = DatasetCatalog.get("shapes_train")
    assert MetadataCatalog.get("shapes_train").thing_classes == ["cross", "circle"]
    assert {x["category_id"] for d in dicts for x in d["annotations"]} == {0, 1}
    register_spec("shapes_train", SPECS["shapes_train"])
    spec = ShapesSpec("train", 2, max_objects=8, classes=("ring",))
    assert spec.folder != ShapesSpec("train", 2, max_objects=8).folder
    _, objects, owner = draw_image(np.random.default_rng([3, 0]), spec)
    assert {category for category, _ in objects} == {0}
    x, y, w, h = objects[0][1]
    assert owner[y + h // 2, x + w // 2] != 0  # a ring has a hole
    cfg.defrost()
    cfg.DATASETS.SHAPES.CLASSES = ["star"]
    with pytest.raises(UserError, match="'star'; it takes circle, ring"):
        register_shapes(cfg)
