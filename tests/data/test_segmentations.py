"""Masks from annotation files: what is wrong with them, and what training makes of good ones."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from groupdetr_d2.commands import run as main
from groupdetr_d2.data import coco_file
from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.checks import DatasetError
from groupdetr_d2.data.coco_columns import CocoImages
from groupdetr_d2.data.coco_file import read_columns
from groupdetr_d2.data.custom import register_custom_datasets
from groupdetr_d2.data.loader import TrainingSet
from groupdetr_d2.data.mask_instances import mask_instances
from groupdetr_d2.data.segmentations import (
    PROBLEMS,
    bitmap,
    encode,
    json_texts,
    polygons_of,
    runs_of,
    segmentations_of,
)
from groupdetr_d2.tasks.masks import MASKS
from tests.conftest import MASK2FORMER, SMALL_MASK_BACKBONE, small_config
from tests.data.test_data import write_set

SIZE = (30, 40)  # height, width
SQUARE = [[10, 5, 20, 5, 20, 15, 10, 15]]
BLOB = np.zeros(SIZE, dtype=bool)
BLOB[4:20, 6:30], BLOB[8:12, 10:16] = True, False  # with a hole
CODE = encode(BLOB[None])[0]
UNCOMPRESSED = {"size": list(SIZE), "counts": list(runs_of(CODE["counts"].encode()))}
BAD = {
    "no mask": [None, [], {}],
    "fewer than three points": [[[1, 2, 3, 4]], [*SQUARE, [1, 2]]],
    "odd number": [[[1, 2, 3, 4, 5, 6, 7]]],
    "neither polygons": [
        [[1e9, 1, float("nan"), 1, 3, 3]],
        "mask",
        [["a", "b"]],
        [1, 2, 3],
        7,
        {"size": [30, 40]},
    ],
    "another size": [{**CODE, "size": [40, 30]}],
    "cannot be decoded": [
        *({**CODE, "counts": CODE["counts"][:-3]}, {**CODE, "counts": CODE["counts"] + "0"}),
        *({**CODE, "counts": [5, 5]}, {**CODE, "counts": ["5"]}, {**CODE, "counts": "\u00e9~"}),
        {**CODE, "counts": [-5, 1205]},
    ],
    "without area": [
        *([[1, 1, 5, 5, 9, 9]], [[50, 5, 60, 5, 60, 15]], [[-9, 1, -3, 1, -3, 9]]),
        {"size": list(SIZE), "counts": [1200]},
    ],
    # a diagonal line, and a polygon whose extent alone overlaps the image
    "mask without area": [[[5, 5, 20, 20, 5, 5]], [[-30, 20, 20, -30, 19, -30, -30, 19]]],
    "ten times as far": [[[10, 5, 20, 5, 20, 1e300]], [[10, 5, 500, 5, 20, 15]]],
}


def problems_of(masks):
    return segmentations_of(json_texts(masks), np.array([[40, 30]] * len(masks)))


@pytest.mark.parametrize("text", BAD)
def test_what_is_wrong_is_named(text):
    found = problems_of(BAD[text])
    for problem in found.problems:
        assert text in PROBLEMS[problem]


def test_good_masks_are_kept_as_they_are():
    masks = [SQUARE, [*SQUARE, [1, 1, 4, 1, 4, 4]], CODE, UNCOMPRESSED]
    found = problems_of(masks)
    assert not found.problems.any()
    assert [found[i] for i in range(4)] == masks
    expected = [[10, 5, 20, 15], [1, 1, 20, 15], [6, 4, 30, 20], [6, 4, 30, 20]]
    np.testing.assert_allclose(found.extents, expected)
    assert np.array_equal(bitmap(found[2], SIZE), BLOB) and np.array_equal(
        bitmap(found[3], SIZE), BLOB
    )


def test_bitmaps_and_self_crossing_polygons_are_masks():
    """Dataset functions may give what Detectron2 calls bitmasks, in numpy or PyTorch."""
    crossing = [[10, 10, 35, 28, 35, 10, 10, 28]]  # signed, its area is 0
    found = problems_of([BLOB, BLOB.astype(np.uint8) * 255, torch.from_numpy(BLOB), crossing])
    assert not found.problems.any() and bitmap(found[3], SIZE).sum() > 100
    for i in range(3):
        assert np.array_equal(bitmap(found[i], SIZE), BLOB)
    assert problems_of([object(), torch.zeros(3, 4, 5)]).problems.all()


def test_runs_add_up_for_any_mask():
    """The check reads COCO's compressed text as pycocotools does."""
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 1.0):
        pixels = rng.random((37, 23)) < density
        code = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        flat = pixels.ravel(order="F")
        changes = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int)))
        expected = np.diff([0, *changes, flat.size])
        assert list(runs_of(code["counts"])) == [x for x in expected.tolist()]


def test_outlines_are_drawn_as_the_mask_they_are_of():
    filled = BLOB.copy()
    filled[8:12, 10:16] = True
    assert np.array_equal(bitmap(polygons_of(CODE), SIZE), filled)
    parts = np.zeros(SIZE, dtype=bool)
    parts[2:9, 3:12] = parts[15:25, 20:33] = True
    cv2_disc = cv2.circle(np.zeros(SIZE, np.uint8), (18, 14), 9, 1, -1) > 0
    for pixels in (parts, cv2_disc):
        polygons = polygons_of(encode(pixels[None])[0])
        assert (bitmap(polygons, SIZE) != pixels).mean() < 0.01


def instances(masks, transforms, size=SIZE, new_size=SIZE):
    objects = [{"segmentation": x, "category_id": i} for i, x in enumerate(masks)]
    return mask_instances(objects, T.TransformList(transforms), size, new_size)


def test_polygons_and_rle_move_with_the_image():
    """Flip, enlargement, crop: as the pixels of the mask would."""
    polygon = [[10, 5, 30, 5, 30, 25, 10, 25]]
    code = encode(bitmap(polygon, SIZE)[None])[0]
    chain = [
        T.HFlipTransform(40),
        T.ResizeTransform(30, 40, 60, 80),
        T.CropTransform(5, 7, 50, 40),
    ]
    found = instances([polygon, code], chain, new_size=(40, 50))
    first, second = found.gt_masks.tensor.numpy()
    assert found.gt_classes.tolist() == [0, 1] and first.shape == (40, 50)
    expected = np.zeros((40, 50), dtype=bool)
    expected[3:43, 15:55] = True  # 10..30 flipped is 10..30, doubled 20..60, less 5; 5..25: 10..50
    assert (first != expected).mean() < 0.03 and (second != expected).mean() < 0.03
    assert found.gt_boxes.tensor[1].tolist() == [15, 3, 50, 40]


def test_padding_belongs_to_no_mask():
    """Neither of an RLE nor of a polygon that reaches over its image."""
    pad = T.FixedSizeCrop((50, 60), pad_value=128.0, seg_pad_value=0).get_transform(
        np.zeros((*SIZE, 3), np.uint8)
    )
    over = [[30, 5, 70, 5, 70, 15, 30, 15]]
    found = instances([over, CODE], pad.transforms, new_size=(50, 60))
    assert not found.gt_masks.tensor[:, 30:].any() and not found.gt_masks.tensor[:, :, 40:].any()
    assert found.gt_masks.tensor[0].sum() == 10 * 10
    assert np.array_equal(found.gt_masks.tensor[1, :30, :40].numpy(), BLOB)


def test_an_object_out_of_sight_is_left_out():
    found = instances([SQUARE, CODE], [T.CropTransform(0, 16, 40, 14)], new_size=(14, 40))
    assert found.gt_classes.tolist() == [1] and found.gt_masks.tensor.shape == (1, 14, 40)
    nothing = instances([], [])
    assert len(nothing) == 0 and nothing.gt_masks.tensor.shape == (0, *SIZE)


@pytest.fixture
def mask_set(tmp_path):
    path = write_set(tmp_path, "train", num_images=4, segmentation=[[2, 3, 12, 3, 12, 11, 2, 11]])
    return path, str(tmp_path / "images")


def with_masks(path, masks):
    """Changes the masks of the first annotations of a file."""
    content = json.loads(open(path).read())
    for annotation, own in zip(content["annotations"], masks, strict=False):
        annotation["segmentation"] = own
    with open(path, "w") as file:
        json.dump(content, file)


def registered(path, root, *opts):
    cfg = small_config(MASK2FORMER, 1, *SMALL_MASK_BACKBONE, *opts)
    cfg.DATASETS.CUSTOM.TRAIN_JSON, cfg.DATASETS.CUSTOM.TRAIN_IMAGES = path, root
    register_custom_datasets(cfg)
    return cfg


def test_training_and_check_data_refuse_the_same(mask_set, tmp_path, capsys):
    path, root = mask_set
    with_masks(path, [None, []])
    cfg = registered(path, root)
    with pytest.raises(DatasetError, match=r"objects with no mask.*annotation 1 .*annotation 2"):
        images_of(cfg.DATASETS.TRAIN[0], with_masks=True)
    assert len(images_of(cfg.DATASETS.TRAIN[0]))  # a model of boxes needs none
    arguments = ["check-data", "--json", path, "--images", root, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0 and main([*arguments, "--masks"]) == 1
    out = capsys.readouterr().out
    assert "error: objects with no mask" in out and "BAD_BOXES drop" in out
    cfg = registered(path, root, "DATASETS.CUSTOM.BAD_BOXES", "drop")
    images = images_of(cfg.DATASETS.TRAIN[0], with_masks=True)
    assert [len(d["annotations"]) for d in images] == [0, 0, 0, 1]


def test_a_registered_set_may_not_lack_masks_either(mask_set, package_log):
    """Its bad boxes are left out, but an object without a mask is an error unless it is allowed."""
    path, root = mask_set
    with_masks(path, [None])
    register_coco_instances("lacks_masks", {}, path, root)
    try:
        with pytest.raises(DatasetError, match="objects with no mask.*annotation 1 "):
            images_of("lacks_masks", with_masks=True)
        MetadataCatalog.get("lacks_masks").bad_boxes = "drop"
        found = images_of("lacks_masks", with_masks=True)
        assert [len(d["annotations"]) for d in found] == [0, 0, 1, 1]
        assert "1 objects with no mask" in package_log.text and "left out" in package_log.text
    finally:
        DatasetCatalog.remove("lacks_masks")
        MetadataCatalog.remove("lacks_masks")


def test_a_set_of_ones_own_function(mask_set):
    """Masks of any of Detectron2's forms, and areas that are those of the masks."""
    _, root = mask_set
    code = coco_mask.encode(np.asfortranarray(np.ones((40, 60), np.uint8)))  # counts are bytes
    triangle = [[0, 0, 30, 0, 0, 30]]
    bits = np.zeros((40, 60), dtype=bool)
    bits[3:13, 2:22] = True
    masks = [code, triangle, bits]
    d = {"file_name": f"{root}/train_1.png", "height": 40, "width": 60, "image_id": 1}
    d["annotations"] = [
        {
            "bbox": [0, 0, 30, 30],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": mask,
        }
        for mask in masks
    ]
    DatasetCatalog.register("own_masks", lambda: [d])
    MetadataCatalog.get("own_masks").thing_classes = ["cat"]
    try:
        columns = images_of("own_masks", with_masks=True).columns
        assert columns.areas.tolist() == [2400, pytest.approx(450, abs=20), 200]
        d["annotations"][0]["segmentation"] = torch.zeros(3, 3, 3)  # which boxes do not need
        assert images_of("own_masks").columns.areas.tolist() == [900] * 3
    finally:
        DatasetCatalog.remove("own_masks")
        MetadataCatalog.remove("own_masks")


def test_a_box_far_from_its_mask_is_named(mask_set, tmp_path, capsys):
    path, root = mask_set
    with_masks(path, [[[30, 3, 39, 3, 39, 11, 30, 11]]])
    main(["check-data", "--masks", "--json", path, "--images", root, "--out", str(tmp_path / "o")])
    assert "warning: boxes that do not fit their masks" in capsys.readouterr().out
    assert (tmp_path / "o" / "data_sheet.jpg").is_file()


@pytest.mark.parametrize("indent", [None, 1])
def test_masks_stay_text_until_they_are_needed(mask_set, indent, monkeypatch, tmp_path):
    """From the file or from the cache, whatever the layout of the file."""
    path, root = mask_set
    content = json.loads(open(path).read())
    content["annotations"].reverse()  # columns are in the order of images
    with_masks(path, [])
    with open(path, "w") as file:
        json.dump(content, file, indent=indent)
    monkeypatch.setenv("GROUPDETR_CACHE", str(tmp_path / "cache"))
    plain = read_columns(path, with_masks=True)
    monkeypatch.setattr(coco_file, "CACHED_SIZE", 0)
    for _ in range(2):
        coco_file._read_columns.cache_clear()
        cached = read_columns(path, with_masks=True)
        assert list(CocoImages(cached, root)) == list(CocoImages(plain, root))
        assert cached.fingerprint == plain.fingerprint != read_columns(path).fingerprint
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2  # with masks, and without
    masks = [a["segmentation"] for d in CocoImages(cached, root) for a in d["annotations"]]
    assert masks == [[[2, 3, 12, 3, 12, 11, 2, 11]]] * 3
    coco_file._read_columns.cache_clear()


def test_large_scale_jitter_is_seeded_by_the_draw(mask_set):
    path, root = mask_set
    cfg = registered(path, root, "INPUT.IMAGE_SIZE", 64)
    images = images_of(cfg.DATASETS.TRAIN[0], with_masks=True)
    sets = [TrainingSet(images, MASKS.build_mapper(cfg, True), seed=seed) for seed in (3, 3, 4)]
    same, again, other = (x[5] for x in sets)
    assert same["image"].shape == (3, 64, 64) and (same["image"] == again["image"]).all()
    assert not (same["image"] == other["image"]).all()
    seen = [sets[0][4 * draw + 1] for draw in range(12)]
    assert len({tuple(x["image"].float().mean((1, 2)).tolist()) for x in seen}) == 12
    assert any((x["image"][:, -1] == 128).all() for x in seen)  # padded
    for x in seen:
        for box, mask in zip(
            x["instances"].gt_boxes.tensor, x["instances"].gt_masks.tensor, strict=True
        ):
            x0, y0, x1, y1 = box.int().tolist()
            assert mask[y0:y1, x0:x1].any() and mask.sum() == mask[y0:y1, x0:x1].sum()


WORDS = [None, True, "x", "", -1, 0, 2.5, 1e300, 1e6, [], {}, [[]], "9" * 9]
WORDS += [float("inf"), float("nan")]


def mutant(rng):
    """A mask with something changed, in its numbers, its kind or its nesting."""
    word = WORDS[rng.integers(len(WORDS))]
    if rng.integers(12) == 0:
        return word
    mask = [SQUARE, [*SQUARE, [1, 1, 4, 1, 4, 4]], CODE, UNCOMPRESSED][rng.integers(4)]
    change = changed_polygons if isinstance(mask, list) else changed_rle
    return change(mask, word, rng)


def changed_polygons(mask, word, rng):
    mask = [list(polygon) for polygon in mask]
    polygon, kind = mask[rng.integers(len(mask))], rng.integers(4)
    place = rng.integers(len(polygon))
    if kind == 0:
        polygon[place] = word
    elif kind == 1:
        del polygon[place:]
    elif kind == 2:
        polygon[:] = (np.array(polygon) * rng.normal(0, 3, len(polygon))).tolist()
    else:
        mask.append(word)
    return mask


def changed_rle(mask, word, rng):
    counts, kind = mask["counts"], rng.integers(5)
    place = rng.integers(len(counts))
    if kind == 0:
        return {**mask, "counts": word}
    if kind == 1:
        return {**mask, "size": word if rng.integers(2) else [30, word]}
    if kind == 2:
        return {**mask, "counts": counts[:place]}
    if kind == 3:
        other = [word] if isinstance(counts, list) else chr(int(rng.integers(1, 300)))
        return {**mask, "counts": counts[:place] + other + counts[place + 1 :]}
    return {key: mask[key] for key in [["size"], ["counts"]][rng.integers(2)]}


def test_whatever_is_accepted_can_be_drawn():
    """Four hundred changed masks: each is named, or is a mask inside the image."""
    rng = np.random.default_rng(0)
    masks = [mutant(rng) for _ in range(400)]
    found = problems_of(masks)
    accepted = np.flatnonzero(found.problems == 0)
    assert 30 < len(accepted) < 300
    for i in accepted:
        drawn = instances([found[i]], [T.HFlipTransform(40)])
        assert drawn.gt_masks.tensor.shape[1:] == SIZE and len(drawn) <= 1
        assert bitmap(found[i], SIZE).shape == SIZE
