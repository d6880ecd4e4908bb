"""What people do with Detectron2 every day, in the shape of the scripts that they write."""

import copy
import logging
import random
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2 import model_zoo as detectron2_model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultPredictor, DefaultTrainer, HookBase, default_setup
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as build_early_optimizer
from detectron2.structures import BoxMode
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer

import groupdetr_d2
from groupdetr_d2 import Trainer, add_groupdetr_config, build_optimizer, model_zoo
from groupdetr_d2.checkpoint import GroupCheckpointer
from groupdetr_d2.data.catalog import images_of
from groupdetr_d2.data.shapes import CLASSES, ShapesSpec, draw_image
from groupdetr_d2.engine.detectron2_habits import OptimizerError
from groupdetr_d2.engine.training_data import build_training_loader
from groupdetr_d2.errors import UserError
from groupdetr_d2.inference.augmented import AugmentedModel
from tests.conftest import SHRINK, make_image

YAML = "quick_start/group_conditional_detr_shapes.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "SEED", 0, "DATALOADER.NUM_WORKERS", 0),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)"),
    *("SOLVER.CHECKPOINT_PERIOD", 10, "TEST.EVAL_PERIOD", 0, "MODEL.DETR.DEC_LAYERS", 2),
    *("MODEL.SMALL_RESNET.CHANNELS", "[8, 8, 16, 32]", "MODEL.DETR.HIDDEN_DIM", 32),
    *("MODEL.DETR.NUM_OBJECT_QUERIES", 12, "MODEL.DETR.NUM_GROUPS", 2),
]


@pytest.fixture
def registered():
    """Registers functions of dataset dicts, without any json; forgets them afterwards."""
    names = []

    def register(name, dicts, **metadata):
        DatasetCatalog.register(name, lambda: [dict(d) for d in dicts])
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    """Six images as Detectron2's dataset dicts; ids are text, boxes are corners, no iscrowd."""
    folder = tmp_path_factory.mktemp("images")
    return [dataset_dict(folder / f"image-{i}.png", i) for i in range(6)]


def dataset_dict(path, number):
    spec = ShapesSpec("train", 1, image_size=64, max_objects=4)
    picture, objects, _ = draw_image(np.random.default_rng(number), spec)
    cv2.imwrite(str(path), picture)
    annotations = [
        {"bbox": [x, y, x + w, y + h], "bbox_mode": BoxMode.XYXY_ABS, "category_id": c}
        for c, (x, y, w, h) in objects
    ]
    size = {"height": 64, "width": 64}
    return {"file_name": str(path), "image_id": path.stem, **size, "annotations": annotations}


@pytest.fixture
def cfg(registered, dicts, tmp_path):
    config = model_zoo.get_config(YAML)
    config.merge_from_list([*SMALL, "OUTPUT_DIR", str(tmp_path / "out")])
    config.DATASETS.TRAIN = (registered("mine_train", dicts, thing_classes=list(CLASSES)),)
    config.DATASETS.TEST = (registered("mine_val", dicts[:3], thing_classes=list(CLASSES)),)
    config.INPUT.MIN_SIZE_TRAIN, config.INPUT.MIN_SIZE_TEST = (64,), 64
    return config


# ---- configurations and models


def test_the_keys_alone_are_a_model():
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    torch.device(cfg.MODEL.DEVICE)
    model = build_model(cfg)
    assert type(model).__name__ == "GroupDETR" and model.groups.num_groups == 1
    expected = model_zoo.get_config("ConditionalDETR/conditional_detr_R_50_50ep.yaml").MODEL
    expected.WEIGHTS = ""
    assert cfg.MODEL == expected  # that of the paper's first table


def test_a_yaml_is_a_model():
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("DINO/group_dino_4scale_R_50_12ep.yaml"))
    cfg.merge_from_list(SHRINK)
    cfg.freeze()
    assert build_model(cfg).groups.num_groups == 11


def test_a_second_call_undoes_nothing():
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    cfg.MODEL.DETR.NUM_GROUPS, cfg.MODEL.PIXEL_MEAN = 5, [0.0, 0.0, 0.0]
    before = cfg.clone()
    add_groupdetr_config(cfg)
    assert cfg == before


def add_other_config(cfg):
    """Sections of the same names, as other projects have them."""
    cfg.MODEL.DETR = CfgNode({"NUM_CLASSES": 3, "FROZEN_WEIGHTS": ""})
    cfg.MODEL.SWIN = CfgNode({"PRETRAIN_IMG_SIZE": 224, "OUT_FEATURES": ["res2"], "DEPTHS": [2]})


def test_other_projects_keep_their_keys():
    cfg = get_cfg()
    add_pointrend_config(cfg)
    add_other_config(cfg)
    add_groupdetr_config(cfg)
    assert cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE == 224 and cfg.MODEL.SWIN.OUT_FEATURES == ["res2"]
    assert cfg.MODEL.DETR.FROZEN_WEIGHTS == "" and cfg.MODEL.DETR.NUM_CLASSES == 80
    assert cfg.MODEL.POINT_HEAD.NUM_CLASSES and build_model(cfg).num_classes == 80


def test_a_section_that_another_project_has_replaced_is_named():
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    add_other_config(cfg)
    with pytest.raises(UserError, match="no key MODEL.DETR.VARIANT: call add_groupdetr_config"):
        build_model(cfg)
    add_groupdetr_config(cfg)
    assert build_model(cfg).num_classes == 80


def test_a_device_that_is_none_is_named():
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    cfg.MODEL.DEVICE = "auto"
    with pytest.raises(UserError, match="MODEL.DEVICE is 'auto'; it can be cpu"):
        build_model(cfg)


def test_models_of_detectron2_are_left_alone():
    cfg = get_cfg()
    add_groupdetr_config(cfg)
    name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    cfg.merge_from_file(detectron2_model_zoo.get_config_file(name))
    cfg.MODEL.DEVICE, cfg.SOLVER.CLIP_GRADIENTS.ENABLED = "cpu", False
    model = build_model(cfg)
    for build in (build_early_optimizer, DefaultTrainer.build_optimizer):
        assert type(build(cfg, model)) is torch.optim.SGD


# ---- model zoo


def test_the_model_zoo_is_detectron2s_shape(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "quick_start/conditional_detr_shapes.yaml"
    assert groupdetr_d2.model_zoo.get_config_file(path).endswith(path)
    for name in ("conditional_detr_shapes.yaml", "conditional_detr_shapes", f"configs/{path}"):
        assert model_zoo.get_config_file(name) == model_zoo.get_config_file(path)
    model = model_zoo.get(path, device="cpu")
    assert model.training and model.groups.num_groups == 1
    assert model_zoo.get_config("group_conditional_detr_shapes").MODEL.DETR.NUM_GROUPS == 5


def test_the_model_zoo_says_what_it_does_not_have():
    with pytest.raises(UserError, match="did you mean configs/DINO/dino_4scale_R_50_12ep"):
        model_zoo.get_config_file("DINO/dino_4scale_R50_12ep.yaml")
    with pytest.raises(UserError, match="LazyConfigs, which are Python code"):
        model_zoo.get_config("DINO/dino.py")
    with pytest.raises(UserError, match="no trained weights for"):
        model_zoo.get(YAML, trained=True)


# ---- inference


def test_default_predictor_and_visualizer(cfg, dicts):
    cfg.MODEL.WEIGHTS = save_model(cfg)
    predictor = DefaultPredictor(cfg)
    image = np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    found = predictor(image)["instances"].to("cpu")
    assert found.image_size == (50, 71) and len(found) == 72  # 12 queries x 6 classes
    picture = Visualizer(image[:, :, ::-1], MetadataCatalog.get(cfg.DATASETS.TEST[0]), scale=1.2)
    drawn = picture.draw_instance_predictions(found[:3]).get_image()
    assert drawn.shape[:2] == (60, 85)


def test_detectron2s_checkpointer_refuses_other_groups(cfg):
    """It would load the bank's shape and leave the bank random, with a warning among many."""
    path = save_model(cfg)
    cfg.MODEL.DETR.NUM_GROUPS = 3
    model = build_model(cfg)
    with pytest.raises(
        UserError, match="K = 2 groups of N = 12 queries, the model K = 3 of N = 12"
    ):
        DetectionCheckpointer(model).load(path)
    GroupCheckpointer(model).load(path)


def save_model(cfg):
    Path(cfg.OUTPUT_DIR).mkdir()
    torch.manual_seed(0)
    model = build_model(cfg)
    DetectionCheckpointer(model, cfg.OUTPUT_DIR, save_to_disk=True).save("mine")
    return f"{cfg.OUTPUT_DIR}/mine.pth"


def test_coco_evaluator_of_several_tasks_on_a_set_without_a_json(cfg, tmp_path):
    model = build_model(cfg).eval()
    name = cfg.DATASETS.TEST[0]
    loader = build_detection_test_loader(cfg, name)
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path))  # finds its tasks itself
    results = inference_on_dataset(model, loader, evaluator)
    assert set(results) == {"bbox"} and results["bbox"]["AP"] >= 0
    for task in ("segm", "keypoints"):
        wanting = COCOEvaluator(name, ("bbox", task), output_dir=str(tmp_path))
        with pytest.raises(UserError, match=f"asked for {task}, and the detections have no"):
            inference_on_dataset(model, loader, wanting)


TRACED = ["group_conditional_detr_shapes", "dino_shapes", "group_mask2former_shapes"]


@pytest.mark.parametrize("name", TRACED)
def test_a_trace_is_the_model_at_any_size(name):
    """Constants of a trace would be silent: `torch.jit.trace` keeps what it cannot follow."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    adapter = TracingAdapter(model, inputs_of(128, 128)).eval()
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    for inputs in (inputs_of(128, 128), inputs_of(160, 96)):
        with torch.no_grad():
            expected = model(inputs)[0]["instances"]
        found = adapter.outputs_schema(traced(inputs[0]["image"]))[0]["instances"]
        torch.testing.assert_close(found.scores, expected.scores)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        if expected.has("pred_masks"):
            assert torch.equal(found.pred_masks, expected.pred_masks)


def inputs_of(height, width):
    return [{"image": make_image(height, width, 2, seed=width)["image"].float()}]


def test_counts_of_flops_and_parameters(cfg):
    model = build_model(cfg).eval()
    flops = FlopCountAnalysis(model, inputs_of(64, 64))
    assert flops.total() > flops.by_module()["model.backbone"] > 1e6
    assert parameter_count(model)[""] == sum(p.numel() for p in model.parameters())


def test_augmentation_in_place_of_an_rcnns(cfg):
    model = build_model(cfg).eval()
    cfg.TEST.AUG.MIN_SIZES = [48, 64]
    augmented = GeneralizedRCNNWithTTA(cfg, model)
    assert isinstance(augmented, AugmentedModel)
    image = make_image(64, 80, 2, seed=0)
    found = augmented([image])[0]["instances"]
    assert found.image_size == (64, 80) and len(found) <= cfg.TEST.DETECTIONS_PER_IMAGE


# ---- training


def test_a_plain_loop(cfg):
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    mapper = DatasetMapper(cfg, is_train=True)
    losses = []
    with EventStorage():
        for batch, _ in zip(
            build_detection_train_loader(cfg, mapper=mapper), range(2), strict=False
        ):
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([7e-5, 7e-5])


def gradients_after_step(optimizer, model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()


def test_optimizers_are_adamw_and_clip(cfg):
    model = build_model(cfg)
    for build in (build_optimizer, DefaultTrainer.build_optimizer):
        optimizer = build(cfg, model)
        assert isinstance(optimizer, torch.optim.AdamW)
        assert gradients_after_step(optimizer, model) == pytest.approx(0.1, rel=1e-4)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert gradients_after_step(build_optimizer(cfg, model), model) > 10


@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_clipping_is_the_same_under_a_gradient_scaler(cfg, scale):
    """A scaler leaves gradients scaled for a fused optimizer, whose step unscales them."""
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(cfg, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale((model(torch.ones(3)) - 50).square().sum()).backward()
    scaler.step(optimizer)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert norm == pytest.approx(cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, rel=1e-4)


@pytest.mark.parametrize("clips", [True, False])
def test_sgd_never_comes_silently(cfg, clips):
    """A script may have imported Detectron2's function before this package taught it."""
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clips
    original = groupdetr_d2.engine.detectron2_habits.build_sgd
    with pytest.raises(OptimizerError, match="use `from groupdetr_d2 import build_optimizer`"):
        original(cfg, build_model(cfg))


def test_default_trainer_trains_with_adamw(cfg):
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.iter == 2 and isinstance(trainer.optimizer, torch.optim.AdamW)
    state = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth")
    GroupCheckpointer(build_model(cfg)).load_to_use(state, "model_final.pth")


def test_log_lines_appear_after_default_setup(cfg, tmp_path, monkeypatch):
    ours = logging.getLogger("groupdetr_d2")  # as in a new process
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "propagate", True)
    ours.setLevel(logging.NOTSET)
    default_setup(cfg, type("Args", (), {"config_file": "", "eval_only": False})())
    logging.getLogger("groupdetr_d2.engine.trainer").info("a line of ours")
    for handler in logging.getLogger("detectron2").handlers:
        handler.flush()
    assert "a line of ours" in (tmp_path / "out/log.txt").read_text()


class CountingEvaluator(DatasetEvaluator):
    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(inputs)

    def evaluate(self):
        return OrderedDict(images=OrderedDict(count=self.count))


def test_everything_that_a_subclass_builds_is_used(cfg, package_log):
    cfg.TEST.EVAL_PERIOD = 1
    used = []

    class Noted(HookBase):
        def after_step(self):
            used.append("hook")

    class Own(Trainer):
        @classmethod
        def build_model(cls, cfg):
            used.append("model")
            return super().build_model(cfg)

        @classmethod
        def build_optimizer(cls, cfg, model):
            return torch.optim.SGD(model.parameters(), 1e-3, momentum=0.5)

        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            return torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5)

        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))

        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            used.append("test loader")
            return build_detection_test_loader(cfg, dataset_name)

        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return CountingEvaluator()

        def build_hooks(self):
            return [*super().build_hooks(), Noted()]

        def build_writers(self):
            used.append("writers")
            return super().build_writers()

    trainer = Own(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.train() == {"images": {"count": 3}}
    assert set(used) == {"model", "test loader", "hook", "writers"}
    assert type(trainer.optimizer) is torch.optim.SGD
    assert isinstance(trainer.scheduler, torch.optim.lr_scheduler.ConstantLR)
    text = package_log.text
    assert "a resumed run would see other images than the uninterrupted one" in text
    assert "the evaluation gives no bbox/AP" in text


def test_a_loader_of_ones_own_has_no_epochs(cfg):
    class Own(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg)

    cfg.SOLVER.EPOCHS = 2
    with pytest.raises(UserError, match="SOLVER.EPOCHS needs to know the number of training"):
        Own(cfg)


class OwnMapper:
    """Draws random numbers wherever people draw them, unseeded."""

    def __init__(self, cfg):
        self.mapper = DatasetMapper(cfg, is_train=True)

    def __call__(self, d):
        d = self.mapper(d)
        noise = torch.rand(1) + random.random() + np.random.rand()
        d["image"] = (d["image"] * noise / 3).to(torch.uint8)
        return d


def test_resume_is_exact_with_a_mapper_of_ones_own(cfg, every_iteration):
    class Own(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_training_loader(cfg, OwnMapper(cfg))

    cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER, cfg.SEED = (), 4, -1
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    trainer = Own(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    whole = list(every_iteration)
    every_iteration.clear()
    for name in ("model_final.pth", "model_0000003.pth", "last_checkpoint"):
        Path(cfg.OUTPUT_DIR, name).unlink()
    trainer = Own(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert len(every_iteration) == 2 and every_iteration == whole[2:]


def test_several_test_sets(cfg, registered, dicts):
    name = registered("mine_other", dicts[3:], thing_classes=list(CLASSES))
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, name)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert set(results) == {"mine_val", "mine_other"}
    records = Path(cfg.OUTPUT_DIR, "metrics.json").read_text()
    assert '"bbox/AP"' in records and '"mine_other/bbox/AP"' in records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": None}, "no 'height'"),
        (
            {"annotations": [{"bbox": [0, 0, 1, 1], "category_id": 0}]},
            "no 'annotations: bbox_mode'",
        ),
    ],
)
def test_a_dict_that_lacks_a_field_is_named(cfg, registered, dicts, change, message):
    wrong = {**dicts[0], **change}
    wrong = {k: v for k, v in wrong.items() if v is not None}
    name = registered("mine_wrong", [dicts[1], wrong], thing_classes=list(CLASSES))
    cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(UserError, match=f"data set mine_wrong: image .*image-0.png has {message}"):
        Trainer(cfg)


def test_a_set_without_class_names_is_named(cfg, registered, dicts):
    cfg.DATASETS.TRAIN = (registered("mine_nameless", dicts),)
    with pytest.raises(UserError, match="mine_nameless has no class names: give it some"):
        Trainer(cfg)


def test_dicts_may_hold_numpys_numbers(cfg, registered, dicts):
    odd = []
    for i, d in enumerate(dicts):
        annotations = [
            {
                **a,
                "bbox": np.array(a["bbox"], np.float32),
                "category_id": np.int64(a["category_id"]),
            }
            for a in d["annotations"]
        ]
        size = {"height": np.int64(64), "width": np.int32(64), "image_id": np.int64(i)}
        odd.append({**d, **size, "annotations": annotations})
    name = registered("mine_numpy", odd, thing_classes=list(CLASSES))
    found, plain = images_of(name), images_of(cfg.DATASETS.TRAIN[0])
    assert [x["annotations"] for x in found] == [x["annotations"] for x in plain]


def test_boxes_of_another_mode_are_named(cfg, registered, dicts):
    turned = {"bbox": [5, 5, 9, 9, 30], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0}
    wrong = [{**dicts[0], "annotations": [turned]}]
    name = registered("mine_turned", wrong, thing_classes=list(CLASSES))
    with pytest.raises(UserError, match="mine_turned: the box .* is no upright box"):
        images_of(name)


def test_rcnns_can_still_be_copied(cfg):
    original = GeneralizedRCNNWithTTA.__new__(GeneralizedRCNNWithTTA)
    assert type(copy.copy(original)) is GeneralizedRCNNWithTTA
