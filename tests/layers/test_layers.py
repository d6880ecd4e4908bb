import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import ops

from groupdetr_d2.layers import attention, dropout
from groupdetr_d2.layers.attention import attend
from groupdetr_d2.layers.box_ops import (
    box_cxcywh_to_xyxy,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
)
from groupdetr_d2.layers.dropout import Dropout, ReluDropout, draw_mask, mask_generator
from groupdetr_d2.layers.mlp import MLP
from groupdetr_d2.layers.position_encoding import (
    image_position_embedding,
    inverse_sigmoid,
    sine_embedding,
)
from groupdetr_d2.layers.roi_align import roi_align, sample_regions
from tests.conftest import ROOT


def padding(batch, keys):
    mask = torch.zeros(batch, 1, 1, keys, dtype=torch.bool)
    mask[0, ..., -3:] = True
    return mask


def explicit_attention(q, k, v, heads, attn_mask, keep=1.0):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(attn_mask, float("-inf"))
    return ((scores.softmax(-1) * keep) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value_dim", [16, 32])
def test_attend_equals_the_formula(masked, value_dim):
    """Also where values are narrower than queries, as in conditional cross-attention."""
    q, k, v = torch.randn(2, 7, 32), torch.randn(2, 9, 32), torch.randn(2, 9, value_dim)
    attn_mask = padding(2, 9) if masked else None
    expected = explicit_attention(q, k, v, 4, attn_mask)
    torch.testing.assert_close(attend(q, k, v, 4, attn_mask), expected)


def test_padding_keys_for_a_gpu_changes_nothing():
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    found = attention._device_attention(q, k, v, ~padding(2, 9), 0.0)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=~padding(2, 9))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("chunk", [1, 13, 80, 10**6])
def test_attention_with_dropout_equals_the_formula(monkeypatch, chunk):
    """With the mask taken out of the draw, and gradients checked numerically."""
    monkeypatch.setattr(attention, "CHUNK", chunk)
    q, k, v = (torch.randn(2, n, 8, dtype=torch.float64, requires_grad=True) for n in (5, 6, 6))
    attn_mask = padding(2, 6)

    def run(q, k, v):
        torch.manual_seed(3)
        return attend(q, k, v, 2, attn_mask, dropout=0.3)

    assert torch.autograd.gradcheck(run, (q, k, v))
    torch.manual_seed(3)
    generator = mask_generator(attention.draw_seed())
    keep = torch.zeros(4, 5, 6)  # (image, head) pairs, queries, keys
    pair_step, row_step = attention._tile_size(5, 6)
    for pairs in keep.split(pair_step):
        for tile in pairs.split(row_step, 1):
            tile.copy_(draw_mask(tile.shape, 0.3, generator))
    keep = keep.unflatten(0, (2, 2))
    torch.testing.assert_close(run(q, k, v), explicit_attention(q, k, v, 2, attn_mask, keep))


def test_attention_with_dropout_in_bfloat16_follows_float32():
    """As mixed precision calls it: the same mask, and results within bfloat16's rounding."""
    inputs = [torch.randn(2, n, 8) for n in (50, 60, 60)]

    def run(dtype):
        q, k, v = (x.to(dtype, copy=True).requires_grad_() for x in inputs)
        torch.manual_seed(3)
        out = attend(q, k, v, 2, padding(2, 60), dropout=0.3)
        out.square().sum().backward()
        return out, q.grad, k.grad, v.grad

    for found, expected in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert found.dtype == torch.bfloat16
        error = (found.float() - expected).abs().max() / expected.abs().max()
        assert error < 0.03


def test_attention_dropout_drops_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    q, k = torch.zeros(1, 400, 8), torch.zeros(1, 500, 8)
    v = torch.eye(500)[None]
    weights = attend(q, k, v, 1, dropout=0.1)  # each row: which keys were kept
    assert abs((weights == 0).float().mean() - 0.1) < 0.003
    assert abs(weights.sum(-1).mean() - 1) < 0.003


def test_masks_at_random_places_of_one_are_not_alike(monkeypatch):
    generator, shape = mask_generator(0), torch.Size([300, 400])
    masks = torch.stack([draw_mask(shape, 0.25, generator) for _ in range(20)])
    assert set(masks.unique().tolist()) == {0, float(np.float32(1 / 0.75))}
    assert abs((masks == 0).float().mean() - 0.25) < 0.002
    neighbours = torch.corrcoef(torch.stack([masks[..., 1:].flatten(), masks[..., :-1].flatten()]))
    among = torch.corrcoef(masks.flatten(1)).fill_diagonal_(0)
    assert abs(neighbours[0, 1]) < 0.005
    assert among.abs().max() < 0.02
    assert torch.equal(draw_mask(shape, 0.25, mask_generator(0)), masks[0])
    monkeypatch.setattr(dropout, "WINDOW", 70_000)  # a mask of two windows
    first, second = draw_mask(shape, 0.25, mask_generator(0)).flatten().split(70_000)
    generator = mask_generator(0)
    assert torch.equal(first, draw_mask(first.shape, 0.25, generator))
    assert torch.equal(second, draw_mask(second.shape, 0.25, generator))


def test_the_last_window_is_whole():
    class Last:
        def random_raw(self):
            return 2**40 - 1

    assert len(draw_mask(torch.Size([dropout.WINDOW]), 0.1, Last())) == dropout.WINDOW


def test_training_leaves_the_long_mask_alone():
    before = dropout._long_mask(0.25).copy()
    x = torch.randn(2, 30, 8, requires_grad=True)
    out = ReluDropout(0.25)(Dropout(0.25)(attend(x, x, x, 2, dropout=0.25)))
    out.sum().backward()
    assert np.array_equal(dropout._long_mask(0.25), before)


def test_a_compiled_dropout_draws_anew_and_the_same_in_backward():
    compiled, masks = torch.compile(Dropout(0.25), backend="eager"), []
    for _ in range(3):
        x = torch.rand(50, 60) + 0.5
        y = compiled(x.requires_grad_())
        y.sum().backward()
        torch.testing.assert_close(x.grad, (y / x).detach())
        masks.append(x.grad)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_dropout_redraws_its_mask_in_backward():
    torch.manual_seed(0)
    x = torch.randn(200, 300, requires_grad=True)
    y = Dropout(0.25)(x)
    assert abs((y == 0).float().mean() - 0.25) < 0.01
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, y.detach() / x.detach())


def test_relu_dropout_is_relu_then_dropout():
    torch.manual_seed(0)
    x = torch.randn(200, 300, requires_grad=True)
    y = ReluDropout(0.1)(x * 1)
    kept = y > 0
    scale = 1 / 0.9
    torch.testing.assert_close(y[kept], (F.relu(x) * scale)[kept])
    assert abs((y == 0).float().mean() - 0.55) < 0.01
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, kept * scale)
    module = ReluDropout(0.1).eval()
    torch.testing.assert_close(module(x * 1), F.relu(x))


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_impossible_dropout_names_the_key(p):
    with pytest.raises(ValueError, match="MODEL.DETR.DROPOUT"):
        Dropout(p)


def test_sine_embedding_equals_recorded_values():
    """Values of the official codes: y before x, sine and cosine interleaved."""
    blocks = sine_embedding(torch.tensor([0.25, 0.6, 0.1, 0.3])).view(4, 128)
    expected = torch.tensor(
        [
            [-0.58779, -0.80902, -0.12271],
            [1.0, 0.0, 0.97792],
            [0.58779, 0.80902, 0.51765],
            [0.95106, -0.30902, 0.99811],
        ]
    )
    torch.testing.assert_close(blocks[:, :3], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "temperature, y, x",
    [
        (20, [-0.86602, -0.5, -0.75499, -0.65573], [-0.58778, -0.80902, -0.44029, -0.89786]),
        (10000, [-0.86602, -0.5, -0.46687, -0.88433], [-0.58778, -0.80902, -0.12271, -0.99244]),
    ],
)
def test_image_position_embedding_equals_recorded_values(temperature, y, x):
    """A 4 x 6 map of which 3 x 5 are valid, at row 1, column 2."""
    mask = torch.ones(1, 4, 6, dtype=torch.bool)
    mask[:, :3, :5] = False
    cell = image_position_embedding(mask, temperature=temperature)[0, 1, 2]
    torch.testing.assert_close(cell[:4], torch.tensor(y), atol=1e-4, rtol=0)
    torch.testing.assert_close(cell[128:132], torch.tensor(x), atol=1e-4, rtol=0)


def test_inverse_sigmoid_and_giou_equal_recorded_values():
    golden = np.load(ROOT / "tests/data/goldens/conditional_detr.npz")
    x = torch.from_numpy(golden["unit_inverse_sigmoid_in"])
    expected = torch.from_numpy(golden["unit_inverse_sigmoid_out"])
    torch.testing.assert_close(inverse_sigmoid(x), expected)
    a, b = torch.from_numpy(golden["unit_giou_a"]), torch.from_numpy(golden["unit_giou_b"])
    expected = torch.from_numpy(golden["unit_giou_out"])
    torch.testing.assert_close(generalized_box_iou(a[:, None], b), expected)


def test_boxes_convert_there_and_back_and_empty_ones_are_finite():
    boxes = torch.rand(5, 4)
    torch.testing.assert_close(box_xyxy_to_cxcywh(box_cxcywh_to_xyxy(boxes)), boxes)
    point = torch.tensor([0.3, 0.3, 0.3, 0.3])
    assert generalized_box_iou(point, point).isfinite()
    assert generalized_box_iou(boxes[:0, None], boxes[:0]).shape == (0, 0)


def test_mlp_shapes_and_gradient():
    mlp = MLP(8, 16, 4, 3)
    x = torch.randn(2, 5, 8, requires_grad=True)
    mlp(x).sum().backward()
    assert x.grad.abs().sum() > 0 and len(list(mlp.parameters())) == 6


@pytest.mark.parametrize("height, width", [(15, 20), (7, 14), (3, 40)])
def test_roi_align_equals_torchvision(height, width):
    """Also across the borders, beyond them, and for empty boxes."""
    torch.manual_seed(0)
    features = torch.randn(2, height, width, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes = torch.rand(2, 30, 4, dtype=torch.float64)
    boxes[0, 0, 2:], boxes[1, 0] = 0, torch.tensor([0.5, 0.5, 1, 1])
    boxes = box_cxcywh_to_xyxy(boxes) * scale
    expected = ops.roi_align(features.permute(0, 3, 1, 2), list(boxes), 7, aligned=True)
    found = roi_align(features, boxes, 7).flatten(0, 1).permute(0, 3, 2, 1)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weight).sum(), features)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_samples_of_regions_equal_grid_sample():
    torch.manual_seed(0)
    regions = torch.randn(6, 7, 7, 5, dtype=torch.float64, requires_grad=True)
    points = (2.2 * torch.rand(6, 8, 2, dtype=torch.float64) - 1.1).requires_grad_()
    expected = F.grid_sample(regions.permute(0, 3, 2, 1), points[:, None], align_corners=False)
    expected, found = expected[:, :, 0].transpose(1, 2), sample_regions(regions, points)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    for tensor in (regions, points):
        found_grad, expected_grad = (
            torch.autograd.grad((x * weight).sum(), tensor, retain_graph=True)[0]
            for x in (found, expected)
        )
        torch.testing.assert_close(found_grad, expected_grad)
