"""The plan of a training step's memory: by hand, against itself, and as a command."""

import json

import pytest
import torch

from groupdetr_d2.analysis import fake_device
from groupdetr_d2.analysis.fake_step import FakeModel, LiveStorages, ParameterBytes, StepPeaks
from groupdetr_d2.analysis.plan import Choice, fastest
from groupdetr_d2.analysis.random_batch import random_inputs
from groupdetr_d2.analysis.step_memory import (
    StepMemory,
    estimate_step,
    images_of_process,
    largest_size,
    memory_of,
)
from groupdetr_d2.commands import run
from groupdetr_d2.config import build_config
from groupdetr_d2.errors import UserError
from groupdetr_d2.layers import attention, deform_sampling, recompute
from tests.conftest import (
    MASK2FORMER,
    ROOT,
    SHRINK,
    SMALL_BACKBONE,
    SMALL_MASK_BACKBONE,
    small_config,
    small_model,
)

CONFIG = "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml"
# other norms would stay float32, as autocast has it on a GPU
FEW_LAYERS = [
    *("MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", 1, "MODEL.RESNETS.NORM", "FrozenBN")
]
LARGE, GIB = (512, 768), 2**30


def test_storages_are_counted_while_they_live():
    known = torch.zeros(5)
    with LiveStorages([known]) as live:
        x = torch.zeros(10)
        y = x.view(2, 5)
        known.view(5, 1)
        del x
        assert live.now == 40
        torch.zeros(100).add_(1)
        assert (live.now, live.peak) == (40, 440)
        del y
    assert live.now == 0


def test_a_step_of_one_layer_by_hand():
    """Backward keeps the input of a product and of a square, and adds the gradients of both."""
    weight = torch.nn.Parameter(torch.ones(10, 10))
    with LiveStorages([weight]) as live:
        weight.register_post_accumulate_grad_hook(live.mark_gradient)
        x = torch.ones(1000, 10)
        out = (x @ weight).square().sum()
        assert live.now == 2 * 40_000 + 4
        out.backward()
        assert live.now - live.beside == 400 and live.peak_beside <= live.peak
    assert torch.equal(weight.grad, torch.full((10, 10), 20_000.0))


def test_static_memory_by_hand():
    peaks = StepPeaks(ParameterBytes(100, 80, largest_unit=20, outside_units=40), 500, 450)
    how = {"accumulates": False, "sharded": False, "has_mean": False}
    alone = memory_of(peaks, num_gpus=1, **how)
    # weights, gradients and two moments; the gradients are part of the peak already
    assert alone == StepMemory(100 + 80 + 160, 500 - 80)
    many = memory_of(peaks, num_gpus=8, **how | {"has_mean": True})
    assert many.static == 340 + 100 + 80  # the mean, and the buckets of the gradients
    parts = memory_of(peaks, num_gpus=1, **how | {"accumulates": True})
    assert parts.total == 340 + 450
    sharded = memory_of(peaks, num_gpus=8, **how | {"sharded": True})
    assert sharded == StepMemory(-(-340 // 8) + 2 * (20 + 40), 450)
    assert memory_of(peaks, num_gpus=1, **how | {"sharded": True}) == alone


def test_sizes_are_those_of_the_real_model():
    model = small_model(num_groups=3)
    sizes = FakeModel(small_config(CONFIG, 3)).parameters
    assert sizes.all == sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    assert sizes.trained == sum(p.nbytes for p in model.parameters() if p.requires_grad)
    layers = [*model.head.encoder.layers, *model.head.decoder.layers]
    units = [sum(x.nbytes for x in layer.parameters()) for layer in layers]
    assert sizes.largest_unit == max(units) and sizes.outside_units == sizes.all - sum(units)


def test_groups_grow_memory_and_recomputation_and_bfloat16_lower_it():
    cfg = small_config(CONFIG, 3, *FEW_LAYERS)
    model, batch = FakeModel(cfg), random_inputs(cfg, LARGE, 2, 3)
    three = model.count(batch, None, "cuda")
    assert model.count(batch, torch.bfloat16, "cuda").peak < 0.8 * three.peak
    assert model.count(batch[:1], None, "cuda").peak == pytest.approx(three.peak / 2, rel=0.1)
    cfg.MODEL.DETR.RECOMPUTE = True
    assert FakeModel(cfg).count(batch, None, "cuda").peak < 0.9 * three.peak
    cfg.MODEL.DETR.RECOMPUTE, cfg.MODEL.DETR.NUM_GROUPS = False, 1
    assert FakeModel(cfg).count(batch, None, "cuda").peak < three.peak


@pytest.mark.parametrize(
    ("config", "opts", "size", "device"),
    [
        (MASK2FORMER, SMALL_MASK_BACKBONE, (64, 96), "cuda"),
        ("configs/quick_start/petr_cubes.yaml", [], (32, 64), "cpu"),
        # recomputes, in bfloat16
        ("configs/DINO/dino_4scale_ViT_B_20ep.yaml", [], (64, 96), "cuda"),
    ],
)
def test_every_task_is_planned(config, opts, size, device):
    cfg = build_config(str(ROOT / config), [*SHRINK, "MODEL.DETR.DEC_LAYERS", 1, *opts])
    memory = estimate_step(cfg, image_size=size, batch_size=2, num_objects=3, device=device)
    assert memory.activations > 0 and memory.static > 0
    assert f"about {memory.total / GIB:.1f} GiB" in str(memory)


def test_a_sharded_step_keeps_no_copies_of_weights():
    """Of float32 weights in bfloat16; in float32 there are none."""
    cfg = small_config(CONFIG)
    model, batch = FakeModel(cfg), random_inputs(cfg, (64, 96), 1, 2)
    for dtype in (torch.bfloat16, None):
        kept = model.count(batch, dtype, "cuda")
        not_kept = model.count(batch, dtype, "cuda", sharded=True)
        assert (not_kept.peak < kept.peak) == (dtype is not None)


def test_what_is_replaced_for_a_count_comes_back():
    before = (attention.implementation, deform_sampling.choose, recompute.checkpoint)
    with pytest.raises(ZeroDivisionError), fake_device.implementations_of("cuda"):
        assert torch.zeros(1).is_cuda and attention.implementation is not before[0]
        raise ZeroDivisionError
    assert before == (attention.implementation, deform_sampling.choose, recompute.checkpoint)
    assert not torch.zeros(1).is_cuda


def test_the_planned_sampling_keeps_what_the_kernel_keeps(monkeypatch):
    triton = pytest.importorskip("groupdetr_d2.layers.deform_sampling_triton")
    monkeypatch.setattr(triton, "_launch", lambda *args: None)
    shapes, peaks = ((8, 8), (4, 4)), []
    for sample in (triton.sample_levels, fake_device.SAMPLING["cuda"]):
        leaves = [
            torch.rand(size, requires_grad=True)
            for size in ((2, 80, 4, 8), (2, 20, 4, 2, 4, 2), (2, 20, 4, 2, 4))
        ]
        triton._sizes(shapes, leaves[0].device)  # kept for ever
        with LiveStorages([*leaves, triton._sizes(shapes, leaves[0].device)]) as live:
            out = sample(leaves[0], shapes, *leaves[1:])
            kept = live.now
            out.sum().backward()
        peaks.append((kept, live.peak))
    assert peaks[0] == peaks[1]


def test_the_largest_size_and_the_images_of_a_process():
    cfg = small_config(CONFIG)
    assert largest_size(cfg) == (800, 1333)
    cfg.INPUT.IMAGE_SIZE = 640
    assert largest_size(cfg) == (640, 640)
    cfg.SOLVER.IMS_PER_BATCH = 16
    assert images_of_process(cfg, 8) == 2
    with pytest.raises(UserError, match=r"IMS_PER_BATCH 16 is no multiple of --num-gpus 3"):
        images_of_process(cfg, 3)


def test_the_fastest_choice_keeps_the_order_of_what_costs_time():
    ways = [
        Choice(False, 1, False, "bfloat16"),
        Choice(False, 1, False, "float32"),
        Choice(False, 1, True, "float32"),
        Choice(False, 2, False, "bfloat16"),
        Choice(True, 1, False, "bfloat16"),
    ]
    # each takes less than the one before; a tenth of 10 GiB stays free
    found = {way: StepMemory((10 - i) * GIB, 0) for i, way in enumerate(ways)}
    for i, memory in enumerate((12, 10.1, 9, 8, 7)):
        best = fastest(dict(reversed(found.items())), memory)
        assert best is not None and best[0] == ways[i]
    assert fastest(found, 6) is None
    assert str(Choice(True, 2, True, "float32")) == (
        "float32, recompute, accumulation in 2 parts, sharding"
    )


def plan(*arguments):
    opts = [str(x) for x in (*SHRINK, *SMALL_BACKBONE, "MODEL.DETR.DEC_LAYERS", 1)]
    given = ["--image-size", "64", "96", "--objects", "3", *arguments]
    return run(["plan", "--config-file", CONFIG, *given, *opts])


@pytest.fixture
def quick_count(monkeypatch):
    """Activations of 10 GiB for each image and group, less if recomputed or in bfloat16."""

    class Count:
        def __init__(self, cfg):
            self.each = cfg.MODEL.DETR.NUM_GROUPS * (5 if cfg.MODEL.DETR.RECOMPUTE else 10) * GIB

        def count(self, batch, dtype, device, sharded):
            peak = len(batch) * self.each * (0.75 if dtype else 1)
            return StepPeaks(ParameterBytes(GIB, GIB, 0, 0), round(peak), round(peak))

    monkeypatch.setattr("groupdetr_d2.analysis.plan.FakeModel", Count)


def test_the_command_says_what_fits(capsys, quick_count):
    more = ("--num-groups", "1", "3", "11", "--batch-size", "4")
    assert plan("--gpu-memory", "40", *more) == 0
    out = capsys.readouterr().out
    assert "8 GPUs of 40 GiB with 4 images of 64 x 96; kernels of CUDA" in out
    assert out.count("| yes    |\n") + out.count("| no     |\n") == 3 * 2 * 2 * 3 * 2
    # 1 GiB of weights, 2 of moments, 1 of buckets, and 30 with the gradients on their way
    assert "K = 1: the fastest that fits is bfloat16, no recompute (34.00 GiB)" in out
    row = "| 1   | no          | float32     | 1       | no        | 5.00     | 39.00         "
    assert row + "| 44.00       | no     |" in out
    assert "K = 3: the fastest that fits is bfloat16, recompute, accumulation in 2 parts" in out
    assert "K = 11: nothing fits; take smaller images" in out


def test_the_command_writes_json(capsys, quick_count):
    more = ("--num-groups", "1", "--batch-size", "4", "--num-gpus", "2", "--device", "cpu")
    assert plan("--gpu-memory", "80", "--json", *more) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["fastest"]["1"]["precision"] == "bfloat16" and len(content["rows"]) == 24
    ways = [r for r in content["rows"] if r["sharded"] and not r["recompute"]]
    totals = {r["parts"]: r["total"] for r in ways if r["precision"] == "float32"}
    assert totals == {n: (40 // n + 2) * GIB for n in (1, 2, 4)}


def test_the_command_counts_the_model(capsys, monkeypatch):
    monkeypatch.setattr("groupdetr_d2.analysis.plan.PRECISIONS", {"float32": None})
    more = ("--num-groups", "1", "--batch-size", "1", "--num-gpus", "1", "--json")
    assert plan("--gpu-memory", "0.0001", *more) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["fits"] for row in content["rows"]] == [False] * 2
    assert content["fastest"] == {"1": None}
    assert all(row["static"] > 0 and row["activations"] > 0 for row in content["rows"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--gpu-memory", "0"), "--gpu-memory is 0: it has to be above 0"),
        (("--gpu-memory", "8", "--num-gpus", "0"), "--num-gpus is 0: it has to be at least 1"),
        (("--gpu-memory", "8", "--num-gpus", "5"), "no multiple of --num-gpus 5"),
    ],
)
def test_wrong_numbers_are_named(wrong, message):
    with pytest.raises(SystemExit, match=message):
        plan(*wrong)
