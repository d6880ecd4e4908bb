"""SOLVER.SHARDING: two processes that share parameters train what one process trains."""

import argparse
import shutil
import signal

import pytest
import torch
from detectron2.utils import comm

from groupdetr_d2.config import build_config
from groupdetr_d2.engine.first_batches import FirstBatchesHook
from groupdetr_d2.engine.interruption import Interrupted
from groupdetr_d2.engine.launch import launch
from groupdetr_d2.engine.report import ReportHook
from groupdetr_d2.engine.sharding import is_sharded, units_of
from groupdetr_d2.engine.train_step import NonFiniteLossError, TrainStep
from groupdetr_d2.engine.trainer import Trainer
from groupdetr_d2.errors import UserError
from tests import ROOT, warm
from tests.conftest import MASK2FORMER, SHRINK, SMALL_MASK_BACKBONE, small_config, small_model

CONFIG = "configs/DINO/dino_4scale_ViT_B_20ep.yaml"
HALF_WAY, ITERATIONS = 3, 5
FROZEN = ["backbone.net.patch_embed.*", "backbone.net.blocks.0.*"]
SHARDED = ("SOLVER.SHARDING", "fsdp")
WITHOUT_TEST = ("DATASETS.TEST", "()")
compute_gradients = TrainStep.compute_gradients


class PlainTrainer(Trainer):
    """Without pictures and reports, which take longer than these trainings."""

    def build_hooks(self):
        left_out = (ReportHook, FirstBatchesHook)
        return [hook for hook in super().build_hooks() if not isinstance(hook, left_out)]


class DoubleTrainer(PlainTrainer):
    """In double precision: AdamW divides rounding errors by themselves where a gradient is zero."""

    @classmethod
    def build_model(cls, cfg):
        return super().build_model(cfg).double()


def options(folder):
    """DINO on a ViT, with all that a sharded training has to get right, and without noise.

    An odd number of images is evaluated. Denoising is drawn in every process for itself.
    """
    data = [
        *("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)"),
        *("DATASETS.SHAPES.NUM_TRAIN", 16, "DATASETS.SHAPES.NUM_VAL", 3, "TEST.EVAL_PERIOD", 4),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", 96, "INPUT.MIN_SIZE_TEST", 96),
        *("INPUT.CROP.ENABLED", False, "MODEL.DETR.NUM_CLASSES", 6, "OUTPUT_DIR", str(folder)),
    ]
    model = [
        *("MODEL.DETR.NUM_GROUPS", 2, "MODEL.DETR.DENOISING.NUM_QUERIES", 0),
        *("MODEL.DETR.DEC_LAYERS", 2, "MODEL.DETR.RECOMPUTE", True, "MODEL.FREEZE", FROZEN),
        *("MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", 0.8, "MODEL.EMA.RAMP", False),
    ]
    solver = [
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATE_STEPS", 2, "SOLVER.WARMUP_ITERS", 0),
        *("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.STEPS", "[4]", "SOLVER.AMP.ENABLED", False),
        *("SOLVER.CHECKPOINT_PERIOD", HALF_WAY, "LOGGERS", "[]"),
    ]
    return [*SHRINK, *data, *model, *solver]


def build(folder, *more, resume=False, kind=DoubleTrainer):
    """Builds a trainer, and a list that its losses of every iteration will be in."""
    trainer, losses = kind(build_config(str(ROOT / CONFIG), [*options(folder), *more])), []
    trainer.resume_or_load(resume=resume)
    step = trainer._trainer
    write = step._write_metrics
    step._write_metrics = lambda found, *rest: (losses.append(dict(found)), write(found, *rest))
    return trainer, losses


def train(folder, *more, resume=False):
    trainer, losses = build(folder, *more, resume=resume)
    trainer.train()
    return trainer, losses


def build_mixed(folder, dtype, *more):
    """In mixed precision, from weights whose classes stand in another order."""
    amp = (
        "MODEL.EMA.ENABLED",
        False,
        "SOLVER.AMP.ENABLED",
        True,
        "SOLVER.AMP.DTYPE",
        dtype,
        *WITHOUT_TEST,
    )
    weights = ("MODEL.WEIGHTS", str(folder / "reversed.pth"))
    name = "_".join([dtype, *more[1:2]])
    return build(folder / name, *amp, *weights, *more, kind=PlainTrainer)


def start_again_from(folder, copy):
    """A run that was cut off half way."""
    copy.mkdir()
    name = f"model_{HALF_WAY - 1:07d}.pth"
    shutil.copy(folder / name, copy / name)
    (copy / "last_checkpoint").write_text(name)


def spoil(self, batch):
    """Spoils two batches of the second process."""
    if comm.get_rank() and self.iter:
        for x in batch:
            x["image"] = x["image"].float() * torch.nan
    return compute_gradients(self, batch)


def be_stopped(self, batch):
    """Sends a signal to the second process alone."""
    if comm.get_rank() and self.iter:
        self.signals.received = signal.SIGTERM
    return compute_gradients(self, batch)


def train_in_two(args):
    """Run by `launch`: a whole training, the rest of two others, and two that end early.

    One of the others goes on with DistributedDataParallel.
    """
    folder = args.folder
    found = {"whole": train(folder / "two", *SHARDED)[1]}
    trainer, found["rest"] = train(folder / "two_of_one", *SHARDED, *WITHOUT_TEST, resume=True)
    if comm.is_main_process():
        start_again_from(folder / "two", folder / "plain_of_two")
    comm.synchronize()
    found["plain"] = train(folder / "plain_of_two", *WITHOUT_TEST, resume=True)[1]
    found["held"] = sum(p.to_local().numel() for p in trainer.raw_model.parameters())
    found["kept"] = sum(p.numel() for p in trainer.whole_copy.model.parameters())

    TrainStep.compute_gradients = spoil
    skip = ("SOLVER.ON_NONFINITE", "skip", "SOLVER.NONFINITE_BUDGET", 1)
    trainer, found["bfloat16"] = build_mixed(folder, "bfloat16", *SHARDED, *skip)
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train()
    found["error"] = str(error.value)

    TrainStep.compute_gradients = be_stopped
    trainer, found["float16"] = build_mixed(folder, "float16", *SHARDED)
    with pytest.raises(Interrupted, match="SIGTERM"):
        trainer.train()
    found["scale"] = trainer._trainer.grad_scaler.get_scale()
    torch.save(found, folder / f"found_{comm.get_rank()}.pth")


def flat(state, prefix=""):
    """Every tensor and number of a checkpoint by name."""
    if not isinstance(state, (dict, list, tuple)):
        return {prefix: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state)
    return {k: v for key, value in pairs for k, v in flat(value, f"{prefix}/{key}").items()}


def assert_same_checkpoint(found, expected):
    """Except for what an evaluation leaves, which resumed runs here do not have."""
    found, expected = (torch.load(path, weights_only=True) for path in (found, expected))
    assert list(found) == list(expected)
    parts = ("model", "trainer", "mean_weights", "iteration")
    found, expected = (flat({name: x[name] for name in parts}) for x in (found, expected))
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert type(found[name]) is type(value) and found[name].dtype == value.dtype
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
        else:
            assert found[name] == pytest.approx(value), name


def assert_same_losses(found, expected, tolerance=1e-6):
    """Of two processes, the mean; the tolerance is relative for losses above 1."""
    assert expected and len(found[0]) == len(expected)
    for *parts, whole in zip(*found, expected, strict=True):
        for name, value in whole.items():
            mean = sum(float(x[name]) for x in parts) / len(parts)
            assert mean == pytest.approx(float(value), rel=tolerance, abs=tolerance), name


@pytest.mark.slow
def test_two_processes_that_share_parameters_train_what_one_process_trains(tmp_path):
    """Losses, weights, mean, optimizer and checkpoint, which either way resumes the other's."""
    trainer, expected = train(tmp_path / "one")
    start_again_from(tmp_path / "one", tmp_path / "two_of_one")
    content = torch.load(tmp_path / "one/model_final.pth", weights_only=True)
    content["run"]["classes"] = content["run"]["classes"][::-1]
    torch.save(content, tmp_path / "reversed.pth")
    args = argparse.Namespace(
        num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto", folder=tmp_path
    )
    running = warm.start(launch, train_in_two, args)
    output = "".join(running.communicate())
    assert running.returncode == 0, output[-5000:]
    found = [torch.load(tmp_path / f"found_{i}.pth") for i in range(2)]

    assert_same_losses([x["whole"] for x in found], expected)
    assert_same_losses([x["rest"] for x in found], expected[HALF_WAY:])
    assert_same_losses([x["plain"] for x in found], expected[HALF_WAY:])
    start_again_from(tmp_path / "two", tmp_path / "one_of_two")
    rest = train(tmp_path / "one_of_two", *WITHOUT_TEST, resume=True)[1]
    assert_same_losses([rest], expected[HALF_WAY:])
    names = ("two/model_0000002", "two/model_final", "two_of_one/model_final")
    for name in (*names, "plain_of_two/model_final", "one_of_two/model_final"):
        same = tmp_path / "one" / name.rpartition("/")[2]
        assert_same_checkpoint(tmp_path / f"{name}.pth", same.with_suffix(".pth"))
    # ahead of an evaluation, in which one process can fail alone
    assert (tmp_path / "two/model_0000003.pth").exists()

    total = sum(p.numel() for p in trainer.raw_model.parameters())
    assert sum(x["held"] for x in found) == total and all(x["held"] < 0.7 * total for x in found)
    assert [x["kept"] for x in found] == [0, 0]
    for dtype, iterations in (("bfloat16", 1), ("float16", 2)):
        trainer, expected = build_mixed(tmp_path, dtype)
        trainer.max_iter = iterations
        trainer.train()
        assert_same_losses([x[dtype] for x in found], expected, tolerance=0.02)
    assert found[0]["scale"] == found[1]["scale"] > 0
    assert "gradient norm not finite" in found[0]["error"]
    assert "First non-finite tensor: none in the forward pass" in found[0]["error"]
    assert "First non-finite tensor: image " in found[1]["error"]
    assert "The iteration is left out, 1 of at most 1" in output
    assert (tmp_path / "float16_fsdp/last_checkpoint").read_text() == "model_0000001.pth"


def test_every_layer_of_vit_encoder_and_decoder_is_a_unit():
    """Mask2Former's encoder stands in another place, and its decoder has one layer more."""
    levels = ("MODEL.DETR.IN_FEATURES", ["p3", "p4", "p5", "p6"])
    backbone = ("MODEL.BACKBONE.NAME", "build_vit_pyramid_backbone", *levels)
    vit = small_model(1, *backbone, config=CONFIG)
    masks = small_model(1, *SMALL_MASK_BACKBONE, *("MODEL.RESNETS.NORM", "GN"), config=MASK2FORMER)
    for model, number in ((vit, 2 + 1 + 3), (masks, 1 + 4)):
        assert len(set(units_of(model))) == number


def test_one_process_trains_the_whole_model_and_says_so(package_log):
    assert not is_sharded(small_config(CONFIG)) and not package_log.text
    assert not is_sharded(small_config(CONFIG, 1, *SHARDED))
    assert "there is one process, which trains the whole model" in package_log.text


def test_what_sharding_does_not_go_together_with_is_named(monkeypatch):
    with pytest.raises(UserError, match="does not go together with MODEL.COMPILE eager"):
        is_sharded(small_config(CONFIG, 1, *SHARDED, "MODEL.COMPILE", "eager"))
    with pytest.raises(UserError, match="SOLVER.SHARDING is 'ddp'; it can be empty or fsdp"):
        small_config(CONFIG, 1, "SOLVER.SHARDING", "ddp")
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard")
    with pytest.raises(UserError, match="needs PyTorch 2.6 or later"):
        is_sharded(small_config(CONFIG, 1, *SHARDED))
