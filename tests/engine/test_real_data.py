"""On real COCO images and ImageNet weights, where they are at hand."""

import os

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.data.catalog import images_of
from tests.conftest import ROOT
from tests.engine.test_engine import train_net

CONFIG = ROOT / "configs/ConditionalDETR/group_conditional_detr_R_50_12ep.yaml"
IMAGENET = ["MODEL.RESNETS.STRIDE_IN_1X1", True]


def test_imagenet_weights_fill_the_backbone(shared_data):
    from groupdetr_d2.config import build_config

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
