"""Masks at the two ends: evaluation, use of a trained model, Detectron2's own parts."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from groupdetr_d2 import Predictor, model_zoo
from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.checkpoint.run_info import RunInfo
from groupdetr_d2.commands import run as main
from groupdetr_d2.config import ConfigError
from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.segmentations import bitmap
from groupdetr_d2.data.video import VideoWriter
from groupdetr_d2.engine.setup import settle_config
from groupdetr_d2.engine.solver import build_optimizer
from groupdetr_d2.errors import UserError
from groupdetr_d2.evaluation.coco_evaluator import CocoEvaluator
from groupdetr_d2.evaluation.coco_results import read_mask_results
from groupdetr_d2.evaluation.evaluation_report import Evaluation
from groupdetr_d2.layers.mask_ops import boxes_around
from groupdetr_d2.modeling.postprocessing import mask_instances
from groupdetr_d2.tasks.masks import MASKS
from tests.conftest import MASK2FORMER, SMALL_MASK_BACKBONE, make_batch, small_config, small_model
from tests.data.test_data import write_set

SHARD = [[2, 3, 30, 3, 22, 20, 30, 35, 2, 28]]


def mask_config(num_groups=2, *opts):
    return small_config(MASK2FORMER, num_groups, *SMALL_MASK_BACKBONE, *opts)


def mask_model(num_groups=2, *opts):
    return small_model(num_groups, *SMALL_MASK_BACKBONE, *opts, config=MASK2FORMER)


@pytest.fixture
def dataset(tmp_path):
    path = write_set(
        tmp_path, "val", boxes=[(2, 3, 28, 32)], num_images=9, segmentation=SHARD, area=600
    )
    register_coco_instances("mask_metrics", {}, path, str(tmp_path / "images"))
    yield "mask_metrics"
    DatasetCatalog.remove("mask_metrics")
    MetadataCatalog.remove("mask_metrics")


def detections(dataset, is_perfect=False):
    rng = np.random.default_rng(0)
    for d in images_of(dataset, with_masks=True):
        size = (d["height"], d["width"])
        true = [(bitmap(a["segmentation"], size), a["category_id"]) for a in d["annotations"]]
        masks, classes = [], []
        for mask, category in true * (1 if is_perfect else 3):
            offset = 0 if is_perfect else int(rng.integers(-6, 7))
            masks.append(np.roll(mask, offset, axis=1))
            classes.append(category if is_perfect else int(rng.integers(2)))
        found = Instances(size)
        found.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
        found.pred_boxes = Boxes(boxes_around(found.pred_masks))
        found.scores = torch.from_numpy(rng.random(len(masks)))
        found.pred_classes = torch.tensor(classes, dtype=torch.long)
        yield d, {"instances": found}


def evaluated(evaluator, dataset, **options):
    evaluator.reset()
    for d, output in detections(dataset, **options):
        evaluator.process([d], [output])
    return evaluator.evaluate()


def test_mask_ap_is_that_of_detectron2s_evaluator(dataset, tmp_path):
    expected = evaluated(COCOEvaluator(dataset, ("segm",), output_dir=str(tmp_path)), dataset)
    found = evaluated(CocoEvaluator(dataset, str(tmp_path), with_masks=True), dataset)
    assert set(found) == {"segm", "bbox"} and 5 < found["segm"]["AP"] < 90
    for name, value in expected["segm"].items():
        assert found["segm"][name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_perfect_masks_and_their_report(dataset, tmp_path):
    """AP 100, and no mistakes by overlaps of masks."""
    evaluator = CocoEvaluator(dataset, str(tmp_path), with_masks=True)
    found = evaluated(evaluator, dataset, is_perfect=True)
    assert found["segm"]["AP"] == found["bbox"]["AP"] == pytest.approx(100)
    results = read_mask_results(dataset, tmp_path / "coco_instances_results.json")
    evaluation = Evaluation.of(results, ["cat", "dog"])
    assert evaluation.together.average_precision == pytest.approx(1)
    assert all((pairs[:, 0] == pairs[:, 1]).all() for pairs in evaluation.pairs)
    first = next(x for x in results if len(x.classes))
    assert torch.equal(first.truth().gt_masks, first.found().pred_masks)


def test_only_the_masks_of_chosen_queries_are_computed():
    """Those of one query at a time and of all together are the same, in chunks or not."""
    model = mask_model().eval()
    batch = make_batch((2, 1), ((64, 96),))
    with torch.no_grad():
        predictions = model.predict(batch, model.groups.primary())
        few, many = (
            mask_instances(predictions, [(64, 90)] * 2, [(100, 130)] * 2, k) for k in (3, 50)
        )
    assert [len(x) for x in few] == [3, 3] and [len(x) for x in many] == [50, 50]
    assert few[0].pred_masks.shape == (3, 100, 130) and few[0].pred_masks.dtype == torch.bool
    for a, b in zip(few, many, strict=True):
        assert (a.scores.diff() <= 0).all()
        for score, label, mask in zip(a.scores, a.pred_classes, a.pred_masks, strict=True):
            same = (b.pred_classes == label) & torch.isclose(b.scores, score)
            assert (b.pred_masks[same] == mask).flatten(1).all(1).any()


def test_boxes_lie_around_masks():
    masks = torch.zeros(2, 8, 9, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    assert boxes_around(masks).tolist() == [[3, 2, 9, 5], [0, 0, 0, 0]]


@pytest.fixture
def weights(tmp_path):
    cfg = mask_config(3, "MODEL.DETR.NUM_CLASSES", 2, "DATASETS.TRAIN", (), "DATASETS.TEST", ())
    cfg.INPUT.MIN_SIZE_TEST = 48
    torch.manual_seed(0)
    run = RunInfo(cfg)
    run.classes = ["cat", "dog"]
    GroupCheckpointer(build_model(cfg), str(tmp_path), run=run).save("model")
    return str(tmp_path / "model.pth")


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "seen.png"), pixels)
    return str(tmp_path / "seen.png")


def test_predict_writes_rle_polygons_and_coco_results(weights, picture, tmp_path):
    ids = {"images": [{"id": 5, "file_name": "seen.png"}]}
    ids["categories"] = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    out = tmp_path / "out"
    arguments = ["predict", picture, "--weights", weights, "--out", str(out), "--threshold", "0"]
    assert main([*arguments, "--coco-json", str(tmp_path / "ids.json")]) == 0
    objects = json.loads((out / "detections.json").read_text())["results"][0]["objects"]
    assert len(objects) == 12 and set(objects[0]) == {"class", "score", "box", "segmentation"}
    covered = [x for x in objects if coco_mask.area(x["segmentation"])]
    for x in covered:
        assert x["segmentation"]["size"] == [60, 90]
        left, top, width, height = coco_mask.toBbox(x["segmentation"])
        assert x["box"] == [left, top, left + width, top + height]
    results = json.loads((out / "coco_results.json").read_text())
    assert results[0]["segmentation"] == objects[0]["segmentation"] and results[0]["image_id"] == 5
    assert not np.array_equal(cv2.imread(str(out / "seen.png")), cv2.imread(picture))
    assert main([*arguments, "--polygons", "--no-pictures"]) == 0
    polygons = json.loads((out / "detections.json").read_text())["results"][0]["objects"]
    for x, y in zip(objects, polygons, strict=True):
        if x in covered:
            drawn, true = bitmap(y["segmentation"], (60, 90)), bitmap(x["segmentation"], (60, 90))
            assert not (true & ~drawn)[1:-1, 1:-1].mean() > 0.02  # holes are filled


def test_every_group_predicts_masks(weights, picture):
    predictor = Predictor(weights, threshold=0.0)
    primary, second = predictor(picture), predictor(picture, group=1)
    assert primary.instances.pred_masks.shape[1:] == (60, 90)
    assert not torch.equal(primary.instances.scores, second.instances.scores)
    again = predictor(picture, group=0)
    torch.testing.assert_close(again.instances.scores, primary.instances.scores)
    assert primary.draw().shape == (60, 90, 3)


def test_test_time_augmentation_is_refused(weights):
    cfg = mask_config(1, "TEST.AUG.ENABLED", True, "DATASETS.TRAIN", (), "DATASETS.TEST", ())
    with pytest.raises(ConfigError, match="GroupMask2Former has no test-time augmentation"):
        settle_config(cfg)
    with pytest.raises(UserError, match="GroupMask2Former has no test-time augmentation"):
        Predictor(weights, opts=["TEST.AUG.ENABLED", True])


def test_polygons_of_a_model_of_boxes_are_refused(tmp_path, picture):
    from tests.inference.test_predict import make_checkpoint

    path = str(make_checkpoint(tmp_path))
    arguments = ["predict", picture, "--weights", path, "--out", str(tmp_path / "o"), "--polygons"]
    with pytest.raises(SystemExit, match="--polygons: the model of .* has no masks"):
        main(arguments)


def test_detectron2s_own_mapper_feeds_it(dataset):
    """Polygons or bitmaps; without masks a sentence says so."""
    model = mask_model(2, "MODEL.DETR.NUM_CLASSES", 2)
    empty, d = DatasetCatalog.get(dataset)[:2]
    for mask_format in ("polygon", "bitmask"):
        mapper = DatasetMapper(
            True,
            augmentations=[T.NoOpTransform()],
            image_format="RGB",
            use_instance_mask=True,
            instance_mask_format=mask_format,
        )
        batch = [mapper(x) for x in (d, empty)]
        losses = model(batch)
        assert len(losses) == 12 and all(x.isfinite() for x in losses.values())
        assert MASKS.draw(np.zeros((40, 60, 3), np.uint8), batch[0]["instances"], ["a", "b"]).any()
    mapper = DatasetMapper(True, augmentations=[T.NoOpTransform()], image_format="RGB")
    with pytest.raises(UserError, match="val_1.png has no masks to learn from.*MASK_ON"):
        model([mapper(d)])


def test_norms_and_embeddings_do_not_decay():
    """As in the official code: by kind of module, so that the encoder's level embedding does."""
    cfg = mask_config(2)
    model = build_model(cfg)
    decays = {}
    for group in build_optimizer(cfg, model).param_groups:
        decays |= {id(p): (group["weight_decay"], group["lr"]) for p in group["params"]}
    own = {name: decays[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert len(own) == len(decays)
    for name in ("head.queries.bank.weight", "head.queries.content_bank.weight"):
        assert own[name] == (0.0, 1e-4)
    assert own["head.neck.level_embedding.weight"] == own["head.predictor.norm.bias"] == (0.0, 1e-4)
    assert own["head.neck.encoder.level_embedding"] == own["head.neck.mask_features.bias"]
    assert own["head.neck.mask_features.bias"] == (0.05, 1e-4)
    assert own["backbone.stem.conv1.weight"] == (0.05, 1e-5)
    assert own["backbone.stem.conv1.norm.weight"] == (0.0, 1e-5)
    assert {decay for decay, _ in own.values()} == {0.0, 0.05}


def test_detr_decays_everything_whatever_detectron2s_key_says():
    """Folders of earlier runs have Detectron2's WEIGHT_DECAY_NORM 0.0, which did not count."""
    cfg = small_config()
    assert cfg.SOLVER.WEIGHT_DECAY_NORM == 0 and cfg.SOLVER.WEIGHT_DECAY_EMBED is None
    groups = build_optimizer(cfg, build_model(cfg)).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 1e-4]


def test_detectron2s_checkpointer_reads_it(weights):
    model = build_model(mask_config(3, "MODEL.DETR.NUM_CLASSES", 2))
    assert not DetectionCheckpointer(model).load(weights).get("missing_keys")


def test_a_video_has_masks_in_every_frame(weights, tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 10.0) as writer:
        for seed in range(3):
            writer.add(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))
    out = tmp_path / "out"
    arguments = ["predict", str(tmp_path / "clip.mp4"), "--weights", weights, "--out", str(out)]
    assert main([*arguments, "--threshold", "0"]) == 0
    results = json.loads((out / "detections.json").read_text())["results"]
    assert [r["frame"] for r in results] == [0, 1, 2] and (out / "clip.mp4").stat().st_size > 0
    assert all(x["segmentation"]["size"] == [48, 64] for r in results for x in r["objects"])


@pytest.mark.parametrize(
    "epochs, steps, length", [(50, (327778, 355092), 368750), (12, (78667, 85222), 88500)]
)
def test_the_recipe_is_the_official_one(epochs, steps, length):
    """Steps at 8/9 and 26/27; the other numbers are those of the official configuration."""
    solver = model_zoo.get_config(f"mask2former_R_50_{epochs}ep").SOLVER
    assert solver.STEPS == steps and solver.MAX_ITER == length
    for step, share in zip(steps, (8 / 9, 26 / 27), strict=True):
        assert step == pytest.approx(share * length, abs=1)
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.BACKBONE_MULTIPLIER) == (1e-4, 0.05, 0.1)
    assert (solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_EMBED) == (0.0, 0.0)
    clip = solver.CLIP_GRADIENTS
    assert clip.ENABLED and (clip.CLIP_TYPE, clip.CLIP_VALUE) == ("full_model", 0.01)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.IMS_PER_BATCH) == (10, 1.0, 16)
    cfg = model_zoo.get_config("group_mask2former_R_50_50ep")
    assert (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE) == (1024, 0.1, 2.0)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0 and cfg.MODEL.DETR.NUM_GROUPS == 11


def test_it_has_the_official_number_of_parameters():
    """43.97 million; eleven groups add ten more rows to each of both query tables."""
    sizes = []
    for name in ("mask2former_R_50_50ep", "group_mask2former_R_50_50ep"):
        cfg = model_zoo.get_config(name)
        cfg.MODEL.DEVICE = "meta"
        model = build_model(cfg)
        sizes.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert sizes == [43_970_257, 43_970_257 + 512_000]
