import logging
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from groupdetr_d2.analysis import step_cost
from groupdetr_d2.config import build_config
from groupdetr_d2.engine.train_step import TrainStep
from groupdetr_d2.modeling.two_stage import TwoStageQueries
from tests import ROOT, warm

# real images and weights, never part of the repository; see docs/results.md for what they are
DATA = Path(os.getenv("GROUPDETR_TEST_DATA", ROOT.parent / "shared" / "data"))

# makes any model small enough for a test, whatever its yaml says
SHRINK = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SEED", 0),
    *("MODEL.DETR.HIDDEN_DIM", 32, "MODEL.DETR.NHEADS", 4, "MODEL.DETR.DIM_FEEDFORWARD", 48),
    *("MODEL.DETR.NUM_OBJECT_QUERIES", 6, "MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 3),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8),
    *("MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [1, 1, 2, 1], "MODEL.SWIN.WINDOW_SIZE", 4),
    *("MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8], "MODEL.SWIN.DROP_PATH_RATE", 0.0),
    *("MODEL.VIT.EMBED_DIM", 32, "MODEL.VIT.DEPTH", 2, "MODEL.VIT.NUM_HEADS", 4),
    *("MODEL.VIT.GLOBAL_BLOCKS", [1], "MODEL.VIT.WINDOW_SIZE", 3, "MODEL.VIT.DROP_PATH_RATE", 0.0),
    *("MODEL.VIT.PRETRAIN_GRID", 4, "MODEL.VIT.RELATIVE_GRID", 8, "MODEL.VIT.PYRAMID_CHANNELS", 32),
    *("MODEL.DETR.TRAIN_NUM_POINTS", 64),
    *("MODEL.VOVNET.STEM_CHANNELS", 8, "MODEL.VOVNET.CONV_CHANNELS", [8, 8, 8, 8]),
    *("MODEL.VOVNET.OUT_CHANNELS", [16, 16, 24, 24], "MODEL.VOVNET.BLOCKS", [1, 1, 2, 1]),
    *("MODEL.VOVNET.NUM_LAYERS", 2, "MODEL.DETR.SPACE.NUM_DEPTHS", 4, "INPUT.GRID_MASK", 0.0),
    *("MODEL.DETR.DROPOUT", 0.0, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
]
# and its backbone, where a test is not about the backbone
SMALL_BACKBONE = [
    *("MODEL.BACKBONE.NAME", "build_small_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.SMALL_RESNET.CHANNELS", [32, 32, 64], "MODEL.RESNETS.NORM", "GN"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3"], "MODEL.DETR.IN_FEATURES", ["res3"]),
]
MASK2FORMER = "configs/Mask2Former/mask2former_R_50_50ep.yaml"
# a backbone as small with the levels that masks need
MASK_LEVELS = ["res2", "res3", "res4"]
SMALL_MASK_BACKBONE = [
    *("MODEL.SMALL_RESNET.CHANNELS", [32, 32, 64, 96], "MODEL.DETR.IN_FEATURES", MASK_LEVELS),
    *("MODEL.RESNETS.OUT_FEATURES", MASK_LEVELS, "MODEL.DETR.SIZE_DIVISIBILITY", 16),
    *("SOLVER.AMP.ENABLED", False),
]


def pytest_configure():
    """Lets commands under test see Ctrl-C: what a script starts with & ignores it, children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The slow ones first, so that processes which share the tests end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def all_configs():
    """Every yaml of configs/ that a user can train."""
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.yaml"))


def distinct_models():
    """A yaml of each model: those that differ in K, classes, the size of a ViT, schedule and
    training alone are the same one.

    That group yamls do differ in K alone is a test of its own.
    """
    models = {}
    for config in all_configs():
        model = build_config(str(ROOT / config)).MODEL
        model.DETR.NUM_GROUPS, model.WEIGHTS = 1, ""
        model.pop("VIT")
        if model.BACKBONE.NAME == "build_vit_pyramid_backbone":
            model.DETR.NUM_CLASSES = 80
        # ablations of training, see test_ablations.py
        model.DETR.JOINT_SELF_ATTENTION, model.FREEZE, model.LOAD_ONLY = False, [], []
        models.setdefault(model.dump(), config)
    return list(models.values())


def small_config(
    config="configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml", num_groups=1, *opts
):
    groups = ["MODEL.DETR.NUM_GROUPS", num_groups]
    return build_config(str(ROOT / config), [*SHRINK, *SMALL_BACKBONE, *groups, *opts])


def small_model(
    num_groups=1, *opts, config="configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml"
):
    torch.manual_seed(0)
    model = build_model(small_config(config, num_groups, *opts))
    randomize_heads(model)
    return model


def randomize_heads(model):
    """The last box layer starts at zero, which would hide differences between queries."""
    generator = torch.Generator().manual_seed(1)
    heads = list(getattr(model.head.predictor, "layer_box_heads", ()))
    if isinstance(model.head.queries, TwoStageQueries):
        heads.append(model.head.queries.heads.box_head)
    for head in heads:
        with torch.no_grad():
            weight = head.layers[-1].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


def make_image(height, width, num_objects, seed, num_classes=80):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_objects, 2, generator=generator) * 0.5
    extent = torch.rand(num_objects, 2, generator=generator) * 0.4 + 0.1
    instances = Instances((height, width))
    scale = torch.tensor([width, height, width, height])
    instances.gt_boxes = Boxes(torch.cat([corner, corner + extent], 1) * scale)
    instances.gt_classes = torch.randint(num_classes, (num_objects,), generator=generator)
    instances.gt_masks = BitMasks(ellipses(instances.gt_boxes.tensor, height, width))
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {
        "image": image,
        "instances": instances,
        "height": height,
        "width": width,
        "file_name": f"image_{seed}.jpg",
    }


def ellipses(boxes_xyxy, height, width):
    """Masks (n, height, width) inside boxes."""
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    x0, y0, x1, y1 = (side[:, None, None] for side in boxes_xyxy.unbind(1))
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1


def make_batch(counts=(3, 2), sizes=((64, 96), (96, 64)), num_classes=80):
    """Images of different sizes, so that the batch is padded."""
    sizes = [sizes[i % len(sizes)] for i in range(len(counts))]
    return [
        make_image(h, w, n, seed, num_classes)
        for seed, (n, (h, w)) in enumerate(zip(counts, sizes, strict=True))
    ]


CAMERA_ANGLES = (90, 35, 145, 270, 200, -20)  # degrees from the lidar's x axis


def make_camera(angle, height, width):
    """The matrix (4, 4) from the lidar's frame to pixels of a camera that looks outwards."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    made, focal = np.eye(4), 0.8 * width
    made[:3, :3] = [[sin, -cos, 0], [0, 0, -1], [cos, sin, 0]]
    intrinsic = np.diag([focal, focal, 1.0, 1.0])
    intrinsic[0, 2], intrinsic[1, 2] = width / 2, height / 2
    return intrinsic @ made


def make_frame(height, width, num_objects, seed, *, num_classes=10, num_frames=1):
    """A sample of six views, or of twelve with an earlier frame."""
    generator = torch.Generator().manual_seed(seed)
    size = (6 * num_frames, 3, height, width)
    matrices = [make_camera(angle, height, width) for angle in CAMERA_ANGLES * num_frames]
    boxes = torch.rand(num_objects, 9, generator=generator) + 0.5
    boxes[:, :2] = 60 * torch.rand(num_objects, 2, generator=generator) - 30
    instances = Instances((height, width), gt_boxes3d=boxes)
    instances.gt_classes = torch.randint(num_classes, (num_objects,), generator=generator)
    return {
        "image": torch.randint(256, size, generator=generator, dtype=torch.uint8),
        "lidar2img": torch.from_numpy(np.stack(matrices)),
        "instances": instances,
        "sample_token": f"sample_{seed}",
        "file_name": f"image_{seed}.jpg",
        **({"interval": 0.5 + 0.1 * seed} if num_frames > 1 else {}),
    }


def batch_for(cfg, counts=(3, 2), sizes=((64, 96), (96, 64))):
    """Inputs of a configuration's model, of different sizes, so that the batch is padded."""
    if cfg.MODEL.META_ARCHITECTURE != "GroupPETR":
        return make_batch(counts, sizes, cfg.MODEL.DETR.NUM_CLASSES)
    kinds = {"num_classes": cfg.MODEL.DETR.NUM_CLASSES}
    kinds["num_frames"] = 2 if cfg.INPUT.VIEWS.EARLIER else 1
    return [
        make_frame(*sizes[i % len(sizes)], number, i, **kinds) for i, number in enumerate(counts)
    ]


def shared_folder(tmp_path_factory):
    """The folder of this run of the suite that all its workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(autouse=True)
def loggers_as_before():
    """Trainers show log lines on the standard output, which a test has for itself alone."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "groupdetr_d2")]
    before = [(list(x.handlers), x.level, x.propagate) for x in loggers]
    yield
    for x, (handlers, level, propagate) in zip(loggers, before, strict=True):
        x.handlers[:], x.propagate = handlers, propagate
        x.setLevel(level)


@pytest.fixture
def package_log(caplog):
    """What the package logs, whether Detectron2's logger set-up lets it through or not."""
    logger = logging.getLogger("groupdetr_d2")
    propagate, level, logger.propagate = logger.propagate, logger.level, False
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.propagate, _ = propagate, logger.setLevel(level)


@pytest.fixture
def shared_data():
    if not DATA.is_dir():
        pytest.skip(f"{DATA} with real images and weights is absent (set GROUPDETR_TEST_DATA)")
    return DATA


@pytest.fixture
def every_iteration(monkeypatch):
    """Trains in this process; returns all losses, not one in twenty."""
    seen = []
    original = TrainStep._write_metrics

    def record(self, losses, *rest, **named):
        seen.append({name: value.item() for name, value in losses.items()})
        return original(self, losses, *rest, **named)

    monkeypatch.setattr(TrainStep, "_write_metrics", record)
    return seen


@pytest.fixture
def warm_measuring(monkeypatch):
    """Processes that measure start at once, see warm.py."""
    assert warm.CONTEXT.get_start_method() == "forkserver"
    monkeypatch.setattr(step_cost, "START_METHOD", "forkserver")


def hide_timm(monkeypatch):
    """Makes imports of timm fail, as where it is not installed."""
    for name in [x for x in sys.modules if x.startswith("timm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
