"""On real COCO images and ImageNet weights, where they are at hand."""

import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from pycocotools.coco import COCO

from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.config import build_config
from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.loader import TrainingSet
from groupdetr_d2.data.segmentations import bitmap
from groupdetr_d2.tasks.masks import MASKS
from tests.conftest import ROOT
from tests.engine.test_engine import train_net

CONFIG = ROOT / "configs/ConditionalDETR/group_conditional_detr_R_50_12ep.yaml"
IMAGENET = ["MODEL.RESNETS.STRIDE_IN_1X1", True]


def test_imagenet_weights_fill_the_backbone(shared_data):
    cfg = build_config(str(CONFIG), ["MODEL.DEVICE", "cpu", *IMAGENET])
    model = build_model(cfg)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    GroupCheckpointer(model).load(str(shared_data / "weights" / "R-50-rgb.pkl"), checkpointables=[])
    after = model.backbone.state_dict()
    kernels = [k for k in after if k.endswith("weight") and after[k].dim() == 4]
    assert len(kernels) == 53 and all(not torch.equal(before[k], after[k]) for k in kernels)


def test_coco_annotations_pass_the_checks(shared_data):
    folder = shared_data / "coco"
    name = "coco_subset_for_checks"
    if name not in DatasetCatalog.list():
        annotations = str(folder / "annotations" / "instances_train2017.json")
        register_coco_instances(name, {}, annotations, str(folder / "train2017"))
    found, dicts = images_of(name), DatasetCatalog.get(name)
    assert len(found) == len(dicts) > 100
    for image, d in zip(found, dicts, strict=True):
        for a in d["annotations"]:
            del a["segmentation"]
        assert image == d


@pytest.mark.slow
def test_the_full_config_trains_and_evaluates_on_coco_as_it_stands(
    shared_data, tmp_path, monkeypatch
):
    """K = 11, R50, the official augmentation and image sizes; a small validation set."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    weights = ["MODEL.WEIGHTS", shared_data / "weights" / "R-50-rgb.pkl", *IMAGENET]
    short = ["SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 0]
    output = ["OUTPUT_DIR", tmp_path, "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", 0]
    done = train_net("--config-file", CONFIG, *weights, *short, *output, interpreter=True)
    assert "K = 11 groups of N = 300 queries" in done.stdout and "iter 1/1" in done.stdout
    coco = shared_data / "coco"
    few = ["INPUT.MIN_SIZE_TEST", 160, "MODEL.WEIGHTS", tmp_path / "model_final.pth", *IMAGENET]
    done = train_net(
        *("--eval-only", "--config-file", CONFIG),
        *("--val-json", coco / "annotations" / "instances_val2017_free.json"),
        *("--val-images", coco / "val2017", *few, "OUTPUT_DIR", tmp_path / "evaluation"),
    )
    assert "box AP:" in done.stdout
    assert os.path.isfile(tmp_path / "evaluation/inference/coco_instances_results.json")


def test_masks_are_those_of_pycocotools(shared_data):
    """Polygons and the RLE of crowds, all of them good."""
    folder = shared_data / "coco"
    annotations = str(folder / "annotations" / "instances_val2017.json")
    name = "coco_masks_for_checks"
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, annotations, str(folder / "val2017"))
    images, coco = images_of(name, with_masks=True), COCO(annotations)
    masks = images.columns.segmentations
    assert len(masks) == len(images.columns.annotation_ids) > 1000 and not masks.problems.any()
    sizes = images.columns.sizes[images.columns.image_of].tolist()
    for i, identity in enumerate(images.columns.annotation_ids[:200]):
        width, height = sizes[i]
        assert np.array_equal(
            bitmap(masks[i], (height, width)), coco.annToMask(coco.anns[identity])
        )


def test_mask2former_trains_on_coco(shared_data, monkeypatch):
    """The full model on real images and masks, which are smaller."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    opts = [
        *("MODEL.DEVICE", "cpu", "INPUT.IMAGE_SIZE", 128, "MODEL.WEIGHTS", "", "SEED", 0),
        *("MODEL.DETR.NUM_GROUPS", 3, "MODEL.DETR.TRAIN_NUM_POINTS", 1024),
    ]
    cfg = build_config(str(ROOT / "configs/Mask2Former/group_mask2former_R_50_12ep.yaml"), opts)
    folder = shared_data / "coco"
    name = "coco_masks_for_a_step"
    if name not in DatasetCatalog.list():
        annotations = str(folder / "annotations" / "instances_train2017.json")
        register_coco_instances(name, {}, annotations, str(folder / "train2017"))
    images = images_of(name, with_masks=True)
    batch = [TrainingSet(images, MASKS.build_mapper(cfg, True))[i] for i in (3, 4)]
    model = build_model(cfg)
    losses = model(batch)
    sum(losses.values()).backward()
    assert len(losses) == 30 and all(x.isfinite() for x in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
