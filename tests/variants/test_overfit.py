"""A model that cannot learn four images by heart is wrong somewhere, whatever its shapes are."""

import json

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

from groupdetr_d2.config import build_config
from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.custom import register_custom_datasets
from groupdetr_d2.data.loader import build_test_loader
from groupdetr_d2.data.nuscenes.cubes import register_cubes_of
from groupdetr_d2.data.shapes import ShapesSpec, generate_shapes
from groupdetr_d2.modeling.meta_arch import task_of
from tests.conftest import ROOT

CUBES = "configs/quick_start/group_petr_cubes.yaml"
CONFIG = "configs/quick_start/conditional_detr_shapes.yaml"
DAB = ["MODEL.DETR.VARIANT", "dab_detr", "MODEL.DETR.POSITION_TEMPERATURE", 20]
SAM = ["MODEL.DETR.VARIANT", "sam_detr", "MODEL.DETR.PROJECTION_NORM", "GN"]
LEVELS = ["res3", "res4"]
PYRAMID = ["MODEL.DETR.IN_FEATURES", LEVELS, "MODEL.RESNETS.OUT_FEATURES", LEVELS]
DEFORMABLE = [
    *PYRAMID,
    *("MODEL.DETR.VARIANT", "deformable_detr", "MODEL.DETR.PROJECTION_NORM", "GN"),
    *("MODEL.DETR.EXTRA_LEVELS", 1, "MODEL.DETR.POSITION_OFFSET", 0.5),
]
DAB_DEFORMABLE = [*DEFORMABLE, "MODEL.DETR.VARIANT", "dab_deformable_detr"]
MASKS = ["res2", "res3", "res4"]
MASK2FORMER = [
    *("MODEL.META_ARCHITECTURE", "GroupMask2Former", "MODEL.DETR.VARIANT", "mask2former"),
    *("MODEL.DETR.IN_FEATURES", MASKS, "MODEL.RESNETS.OUT_FEATURES", MASKS),
    *("MODEL.DETR.SIZE_DIVISIBILITY", 16, "MODEL.DETR.TRAIN_NUM_POINTS", 512),
]
DINO = [
    *("MODEL.DETR.VARIANT", "dino"),
    *("MODEL.DETR.DENOISING.NUM_QUERIES", 10, "MODEL.DETR.DENOISING.BOX_NOISE", 1.0),
]
# per model family, what differs from the small Conditional DETR; DAB-DETR, SAM-DETR and the plain
# Deformable DETR are left to those that build on them
FAMILIES = {
    "conditional_detr": [],
    "dn_detr": [*DAB, "MODEL.DETR.DENOISING.NUM_QUERIES", 10],
    "sam_detr_pp": [*SAM, *PYRAMID],
    "deformable_detr_two_stage": [*DEFORMABLE, "MODEL.DETR.TWO_STAGE", "objectness"],
    "dab_deformable_detr": DAB_DEFORMABLE,
    "dino": [*DAB_DEFORMABLE, *DINO],
    "mask2former": MASK2FORMER,
}
# side of the images, width of the model, steps, highest learning rate; the DETRs that move anchors
# on one level need more of each
SCHEDULES = {name: (96, 64, 80, 4e-3) for name in FAMILIES}
SCHEDULES |= {"conditional_detr": (128, 64, 90, 5e-3), "dn_detr": (128, 128, 200, 3e-3)}
SCHEDULES["mask2former"] = (96, 64, 120, 3e-3)
SCHEDULES["sam_detr_pp"] = (96, 64, 160, 4e-3)


def four_images(tmp_path, family, num_groups):
    size, width, *_ = SCHEDULES[family]
    folder = generate_shapes(ShapesSpec("overfit", 4, size, 3, seed=2), tmp_path)
    json_file, images = str(folder / "annotations.json"), str(folder / "images")
    custom = [
        *("DATASETS.CUSTOM.TRAIN_JSON", json_file, "DATASETS.CUSTOM.TRAIN_IMAGES", images),
        *("DATASETS.CUSTOM.VAL_JSON", json_file, "DATASETS.CUSTOM.VAL_IMAGES", images),
        *("MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_GROUPS", num_groups, "SEED", 0),
        *("MODEL.DETR.NUM_OBJECT_QUERIES", 12, "MODEL.DETR.DEC_LAYERS", 2),
        *("MODEL.DETR.HIDDEN_DIM", width, "MODEL.DETR.DIM_FEEDFORWARD", 2 * width),
        *("INPUT.MIN_SIZE_TRAIN", (size,), "INPUT.MAX_SIZE_TRAIN", size),
        *("INPUT.MIN_SIZE_TEST", size, "INPUT.MAX_SIZE_TEST", size),
        *("INPUT.RANDOM_FLIP", "none", "OUTPUT_DIR", tmp_path / "out"),
    ]
    cfg = build_config(str(ROOT / CONFIG), [str(x) for x in (*custom, *FAMILIES[family])])
    register_custom_datasets(cfg)
    return cfg


def train(model, batch, *, steps, highest_lr, clip_norm):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest_lr, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        schedule.step()


# three groups of every family, and one of the first
CASES = [*((family, 3) for family in FAMILIES), ("conditional_detr", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("family, num_groups", CASES)
def test_four_images_are_learnt_by_heart(tmp_path, family, num_groups):
    cfg = four_images(tmp_path, family, num_groups)
    name, task = cfg.DATASETS.TRAIN[0], task_of(cfg)
    mapper = task.build_mapper(cfg, is_train=True)
    batch = [mapper(d) for d in images_of(name, with_masks=task.with_masks)]
    torch.manual_seed(0)
    model = build_model(cfg)
    *_, steps, highest_lr = SCHEDULES[family]
    train(model, batch, steps=steps, highest_lr=highest_lr, clip_norm=0.1)
    evaluator = task.build_evaluator(name, str(tmp_path))
    mapper = task.build_mapper(cfg, is_train=False)
    loader = build_test_loader(cfg, task.data.images_of(name, is_evaluated=True), mapper)
    results = inference_on_dataset(model.eval(), loader, evaluator)
    assert task.score_of(results) > 90
    assert json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert MetadataCatalog.get(name).thing_classes[0] == "circle"


@pytest.mark.slow
def test_a_keyframe_is_learnt_by_heart(tmp_path, monkeypatch):
    """Places, sizes, headings and velocities of all boxes in six photographs."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cubes = [("KEYFRAMES", 1), ("TRAIN_SCENES", 1), ("VAL_SCENES", 1)]
    space = [-9.0, -9.0, -3.0, 9.0, 9.0, 1.0]
    opts = [x for key, value in cubes for x in (f"DATASETS.CUBES.{key}", value)]
    opts += ["MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_GROUPS", 3, "MODEL.DETR.SPACE.BOX_RANGE", space]
    opts += ["MODEL.DETR.NUM_OBJECT_QUERIES", 16, "MODEL.DETR.DEC_LAYERS", 2]
    cfg = build_config(str(ROOT / CUBES), [str(x) for x in opts])
    register_cubes_of(cfg)
    task = task_of(cfg)
    mapper = task.build_mapper(cfg, is_train=True)
    batch = [mapper(record) for record in task.data.images_of("cubes_train")]
    torch.manual_seed(0)
    model = build_model(cfg)
    train(model, batch, steps=300, highest_lr=1.2e-3, clip_norm=2.0)
    truth, found = batch[0]["instances"], model.eval()(batch)[0]["instances"]
    best = found[found.scores.argsort(descending=True)[: len(truth)]]
    distances = torch.cdist(truth.gt_boxes3d[:, :2], best.pred_boxes3d[:, :2])
    assert len(truth) > 5 and distances.min(1).values.max() < 0.3
    best = best[distances.argmin(1)]
    assert torch.equal(best.pred_classes, truth.gt_classes)
    difference = best.pred_boxes3d - truth.gt_boxes3d
    turn = difference[:, 6]
    assert torch.atan2(turn.sin(), turn.cos()).abs().max() < 0.3
    assert difference[:, 2:6].abs().max() < 0.3 and difference[:, 7:].abs().max() < 1.0
