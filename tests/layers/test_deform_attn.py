"""Deformable attention: every implementation against the formula, and each other."""

import importlib.util
import logging
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from groupdetr_d2.layers import deform_sampling, deform_sampling_sparse
from groupdetr_d2.layers.ms_deform_attn import MSDeformAttn

SHAPES = ((6, 9), (3, 5), (2, 2))
NUM_CELLS = sum(h * w for h, w in SHAPES)


def random_inputs(dtype=torch.float64, channels=8, queries=23, heads=4, points=2):
    """Values, and locations of which some lie outside or far outside; none on a cell's centre."""
    torch.manual_seed(0)
    value = torch.randn(2, NUM_CELLS, heads, channels, dtype=dtype)
    locations = torch.rand(2, queries, heads, len(SHAPES), points, 2, dtype=dtype) * 1.6 - 0.3
    locations[0, 0], locations[1, 0], locations[1, 1, ..., 0] = 50.0, -50.0, 1e9
    weights = torch.rand(2, queries, heads, len(SHAPES), points, dtype=dtype)
    return value, locations, weights


def by_the_formula(value, locations, weights):
    """One sample after the other."""
    batch, queries, heads, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    starts = [sum(h * w for h, w in SHAPES[:i]) for i in range(levels)]
    index = torch.cartesian_prod(*(torch.arange(n) for n in weights.shape))
    for b, q, m, level, point in index.tolist():
        height, width = SHAPES[level]
        x, y = (locations[b, q, m, level, point] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    weight = weights[b, q, m, level, point] * (1 - abs(x - column))
                    cell = value[b, starts[level] + row * width + column, m]
                    out[b, q, m] += weight * (1 - abs(y - row)) * cell
    return out.flatten(2)


def implementations():
    found = {"reference": deform_sampling.reference}
    if deform_sampling_sparse.is_available():
        found["sparse"] = deform_sampling_sparse.sample_levels
    return found


@pytest.mark.parametrize("name", implementations())
def test_sampling_equals_the_formula(name):
    value, locations, weights = random_inputs()
    found = implementations()[name](value, SHAPES, locations, weights)
    torch.testing.assert_close(found, by_the_formula(value, locations, weights))


@pytest.mark.parametrize("name", implementations())
def test_gradients_numerically(name):
    inputs = [x[:, :3, :2].contiguous() for x in random_inputs(channels=3)[1:]]
    value = random_inputs(channels=3)[0][:, :, :2].contiguous()
    inputs = [x.requires_grad_() for x in (value, *inputs)]
    run = implementations()[name]
    assert torch.autograd.gradcheck(lambda v, lo, w: run(v, SHAPES, lo, w), inputs)


@pytest.mark.parametrize("name", implementations())
def test_half_precision_values_are_added_up_in_float32(name):
    value, locations, weights = random_inputs(torch.float32)
    run = implementations()[name]
    half = value.bfloat16()
    found = run(half, SHAPES, locations, weights)
    assert found.dtype == torch.bfloat16
    expected = run(half.float(), SHAPES, locations, weights)
    torch.testing.assert_close(found, expected.bfloat16())


def test_a_location_that_is_no_number_does_not_read_elsewhere():
    if not deform_sampling_sparse.is_available():
        pytest.skip("PyTorch has no sparse products on this CPU")
    value, locations, weights = random_inputs(torch.float32)
    expected = deform_sampling_sparse.sample_levels(value, SHAPES, locations, weights)
    locations[0, 3] = float("nan")
    found = deform_sampling_sparse.sample_levels(value, SHAPES, locations, weights)
    assert found[0, 3].isnan().all()
    found[0, 3], expected[0, 3] = 0, 0
    assert torch.equal(found, expected)


def one_sample():
    """In the middle of the first of four cells."""
    return torch.ones(1, 4, 1, 4), torch.full((1, 1, 1, 1, 1, 2), 0.25), torch.ones(1, 1, 1, 1, 1)


TRITON = """
import torch
from groupdetr_d2.layers import deform_sampling
from groupdetr_d2.layers.deform_sampling_triton import sample_levels
from tests.layers.test_deform_attn import SHAPES, compare, one_sample, random_inputs
device = "cuda" if torch.cuda.is_available() else "cpu"
for channels, dtype, queries in (
    (8, torch.float32, 23), (12, torch.float32, 7), (32, torch.bfloat16, 7)
):
    compare(sample_levels, random_inputs(torch.float32, channels, queries), dtype, device)
with torch.inference_mode():  # what is kept from it must serve a training too
    value, location, weight = (x.to(device) for x in one_sample())
    sample_levels(value, ((2, 2),), location, weight)
value, location, weight = (x.to(device) for x in one_sample())
sample_levels(value.requires_grad_(), ((2, 2),), location, weight).sum().backward()
assert value.grad[0, 0, 0, 0] == 1
deform_sampling._check(sample_levels, torch.device(device))
print("same on", device)
"""


def compare(run, inputs, dtype, device):
    """Output and the three gradients against the reference."""
    results = []
    value = inputs[0].to(dtype)
    for sample in (deform_sampling.reference, run):
        leaves = [x.detach().clone().to(device).requires_grad_() for x in (value, *inputs[1:])]
        out = sample(leaves[0], SHAPES, *leaves[1:])
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device)
        (out.float() * weight).sum().backward()
        results.append([out.float(), *(x.grad.float() for x in leaves)])
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for expected, found in zip(*results, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, atol=tolerance * scale, rtol=0)


def test_triton_kernels_in_the_interpreter():
    """The kernels' arithmetic without a GPU: Triton's interpreter runs them on the CPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    env = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", TRITON], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "same on cpu", done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_triton_kernels_on_cuda():
    done = subprocess.run([sys.executable, "-c", TRITON], capture_output=True, text=True)
    assert done.stdout.strip() == "same on cuda", done.stderr[-2000:]


@pytest.mark.parametrize("dims", [2, 4])
def test_offsets_are_cells_around_points_and_parts_of_boxes(dims):
    """At the start, head 0 looks to the right: by cells, or in steps up to the box's border."""
    torch.manual_seed(0)
    layer = MSDeformAttn(32, 8, 1, 4)
    seen = {}
    with torch.no_grad():
        layer.value_proj.weight.copy_(torch.eye(32))
        layer.output_proj.weight.copy_(torch.eye(32))
    shapes = ((16, 16),)
    columns = (torch.arange(16) + 0.5) / 16
    features = columns.repeat(16)[None, :, None].expand(1, -1, 32)  # its own x
    reference = torch.tensor([0.5, 0.5, 0.25, 0.1])[:dims].view(1, 1, 1, dims)
    out = layer(torch.zeros(1, 1, 32), reference, features, shapes, None)
    seen = out.view(8, 4)[0, 0].item()  # the mean x of head 0's four points
    step = 1 / 16 if dims == 2 else 0.25 / 2 / 4
    assert seen == pytest.approx(0.5 + step * (1 + 2 + 3 + 4) / 4, abs=1e-5)


def test_padded_values_count_as_zero():
    torch.manual_seed(0)
    layer = MSDeformAttn(16, 4, 3, 2)
    with torch.no_grad():
        layer.value_proj.bias.fill_(3.0)
    features = torch.randn(1, NUM_CELLS, 16)
    mask = torch.rand(1, NUM_CELLS) < 0.5
    query, reference = torch.randn(1, 5, 16), torch.rand(1, 5, 3, 4)
    expected = layer(query, reference, features, SHAPES, mask)
    features[mask] = 100.0
    assert torch.equal(layer(query, reference, features, SHAPES, mask), expected)


def test_the_implementation_is_named_once_in_the_log(caplog, monkeypatch):
    inputs = random_inputs(torch.float32)
    value, rest = inputs[0], inputs[1:]
    monkeypatch.setenv(deform_sampling.CHOICE, "reference")
    deform_sampling.choose.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            deform_sampling.sample_levels(value, SHAPES, *rest)
    lines = [x for x in caplog.messages if "deformable attention" in x]
    assert lines == ["deformable attention on cpu: reference"]
    monkeypatch.setenv(deform_sampling.CHOICE, "fastest")
    deform_sampling.choose.cache_clear()
    with pytest.raises(ValueError, match="'fastest'; it can be one of reference, sparse, triton"):
        deform_sampling.sample_levels(value, SHAPES, *rest)
    deform_sampling.choose.cache_clear()


@pytest.fixture
def kernels(monkeypatch):
    """Where Triton should be; as if there were a GPU."""
    found = SimpleNamespace(sample_levels=deform_sampling.reference)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    monkeypatch.setattr(deform_sampling, "_triton", lambda: found)
    return found


def test_where_triton_does_not_compile_plain_pytorch_is_used(caplog, kernels):
    """As in a container without a C compiler."""

    def no_compiler(*_):
        raise RuntimeError("Failed to find C compiler")

    assert deform_sampling.fastest("cuda") == "triton" and not caplog.messages
    kernels.sample_levels = no_compiler
    assert deform_sampling.fastest("cuda") == "reference"
    assert "Failed to find C compiler" in caplog.text and "apt install gcc" in caplog.text


def test_where_triton_computes_something_else_plain_pytorch_is_used(caplog, kernels):
    kernels.sample_levels = lambda *x: 1.01 * deform_sampling.reference(*x)
    assert deform_sampling.fastest("cuda") == "reference"
    assert "results are not those of plain PyTorch" in caplog.text
    kernels.sample_levels = lambda *x: float("nan") * deform_sampling.reference(*x)
    assert deform_sampling.fastest("cuda") == "reference"


def test_triton_is_tried_whatever_is_around_the_caller(caplog, kernels):
    """Recomputation, which counts what is saved for backward; inference mode; autocast."""
    x, random_state = torch.ones(3, requires_grad=True), torch.get_rng_state()

    def layer(x):
        assert deform_sampling.fastest("cuda") == "triton"
        return x.square().exp()

    checkpoint(layer, x, use_reentrant=False).sum().backward()
    with torch.inference_mode(), torch.autocast("cpu"):
        assert deform_sampling.fastest("cuda") == "triton"
    assert not caplog.messages and torch.equal(torch.get_rng_state(), random_state)
