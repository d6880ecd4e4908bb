"""Costs and losses of masks: the same numbers as from masks that are formed whole."""

import pytest
import torch
import torch.nn.functional as F

from groupdetr_d2.groups import QueryGroups
from groupdetr_d2.layers.point_sampling import sample_maps
from groupdetr_d2.losses import mask
from groupdetr_d2.losses.classification import softmax_loss, weight_of_queries
from groupdetr_d2.losses.mask import (
    MaskPredictions,
    MaskTargets,
    PointSampler,
    bce_loss,
    dice_loss,
    mask_cost,
)
from groupdetr_d2.losses.matcher import match_groups
from groupdetr_d2.structures import PerImage
from groupdetr_d2.variants.mask2former import _resized, blocked_cells
from tests.conftest import MASK2FORMER, SMALL_MASK_BACKBONE, ellipses, make_batch, small_model

L, B, N, C, CLASSES = 3, 2, 5, 8, 4
SIZE, STRIDE, POINTS = (12, 10), 4, 40


def predictions(num_groups=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    queries = num_groups * N
    features = PerImage(draw(B, C, *SIZE))
    logits, embeddings = draw(L, B, queries, CLASSES + 1), draw(L, B, queries, C)
    return MaskPredictions(logits=logits, embeddings=embeddings, features=features, stride=STRIDE)


def targets(counts=(3, 2)):
    generator = torch.Generator().manual_seed(7)
    height, width = (side * STRIDE for side in SIZE)
    corner = torch.rand(sum(counts), 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 15], 1)
    labels = torch.randint(CLASSES, (sum(counts),), generator=generator)
    return MaskTargets(labels, ellipses(boxes, height, width), counts=list(counts))


def prepared(num_groups=1, counts=(3, 2)):
    sampler = PointSampler(POINTS, oversample_ratio=3.0, importance_ratio=0.75)
    generator = torch.Generator().manual_seed(1)
    return sampler(predictions(num_groups), targets(counts), generator)


def whole_masks(found):
    return torch.einsum("lbqc,bchw->lbqhw", found.embeddings, found.features.value)


def dice(probabilities, true):
    overlap = 2 * (probabilities * true).sum(-1) + 1
    return 1 - overlap / (probabilities.sum(-1) + true.sum(-1) + 1)


def test_costs_are_those_of_whole_masks():
    found, true = prepared()
    for b, target in enumerate(true.of_images()):
        cost = mask_cost(found.of_image(b), target, bce_weight=5.0, dice_weight=2.0)
        for layer in range(L):
            points = found.points[layer, b]
            logits = sample_maps(whole_masks(found)[layer, b][None], points[None])[0]  # (Q, P)
            wanted = sample_maps(target.masks[None].float(), points[None])[0]  # (T, P)
            for q in range(N):
                for t in range(len(wanted)):
                    bce = F.binary_cross_entropy_with_logits(logits[q], wanted[t])
                    expected = 5 * bce + 2 * dice(logits[q].sigmoid(), wanted[t])
                    torch.testing.assert_close(cost[layer, q, t], expected, atol=1e-5, rtol=1e-5)


def matches_of(found, true, num_groups):
    groups = QueryGroups(N, num_groups)
    costs = [torch.rand(L, groups.bank_size, n) for n in true.counts]
    return match_groups(costs, groups)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_losses_are_those_of_whole_masks(num_groups):
    """At the points that were chosen, and with the same gradients."""
    found, true = prepared(num_groups)
    matches, chosen = matches_of(found, true, num_groups), []
    original = mask._uncertain_points

    def record(*args):
        chosen.append(original(*args))
        return chosen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask, "_uncertain_points", record)
        losses = bce_loss(found, true, matches), dice_loss(found, true, matches)
    assert len(chosen) == L  # once for both
    bce, dice_sum, masks = torch.zeros(L), torch.zeros(L), whole_masks(found)
    table = matches.by_target(len(true.labels))
    for layer in range(L):
        for t in range(len(true.labels)):
            image = 0 if t < true.counts[0] else 1
            for k in range(num_groups):
                points = chosen[layer][t, k][None]
                own = masks[layer, image, table[layer, t, k]][None, None]
                logits = sample_maps(own, points)[0, 0]
                wanted = sample_maps(true.masks[t][None, None].float(), points)[0, 0]
                bce[layer] += F.binary_cross_entropy_with_logits(logits, wanted)
                dice_sum[layer] += dice(logits.sigmoid(), wanted)
    torch.testing.assert_close(losses[0], bce, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses[1], dice_sum, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(sum(x.sum() for x in losses), found.embeddings, retain_graph=True)
    expected = torch.autograd.grad(bce.sum() + dice_sum.sum(), found.embeddings)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_most_points_are_where_the_mask_is_uncertain():
    found, true = prepared()
    masks = whole_masks(found)[0, 0, :3][:, None]  # (T, K = 1, h, w)
    points = mask._uncertain_points(found, masks)
    assert points.shape == (3, 1, POINTS, 2)
    certainty = sample_maps(masks, points.flatten(1, 2)).abs()[:, 0]
    uncertain, others = certainty.split([30, 10], 1)  # three quarters, and those drawn anew
    assert uncertain.mean() < 0.5 * others.mean()


def test_more_targets_than_queries():
    """Some targets have no query, and no share in the loss."""
    found, true = prepared(2, (7, 1))
    matches = matches_of(found, true, 2)
    table = matches.by_target(8)
    assert ((table >= 0).sum((0, 1)) == L * (N + 1)).all()
    loss = bce_loss(found, true, matches)
    assert loss.isfinite().all() and matches.query.shape == (L, 2 * (N + 1))


def test_blocked_cells_are_those_of_resized_masks():
    torch.manual_seed(0)
    features, embeddings = torch.randn(2, C, 16, 24), torch.randn(2, N, C)
    embeddings[0, 0] = 0  # covers nothing
    masks = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    for size in ((4, 6), (8, 12)):
        resized = F.interpolate(masks, size, mode="bilinear", align_corners=False).flatten(2)
        expected = resized.sigmoid() < 0.5
        expected[expected.all(-1)] = False
        blocked = blocked_cells(embeddings, _resized(features, size))
        assert torch.equal(blocked, expected) and not blocked.all(-1).any()


def test_a_mask_that_covers_nothing_lets_its_query_see_everything():
    features = torch.ones(1, C, 6)
    blocked = blocked_cells(torch.tensor([[[-1.0] * C, [1.0] * C]]), features)
    assert not blocked.any()
    half = torch.cat([features[..., :3], -features[..., 3:]], -1)
    blocked = blocked_cells(torch.ones(1, 1, C), half)
    assert blocked[0, 0].tolist() == [False] * 3 + [True] * 3


def test_softmax_loss_is_the_mean_over_groups():
    """Cross-entropy of all queries; "no object" is the last class and weighs a tenth."""
    found, true = predictions(3), targets()
    matches = matches_of(found, true, 3)
    groups = QueryGroups(N, 3)
    loss = softmax_loss(found, true, matches, no_object_weight=0.1)
    loss = loss / weight_of_queries(true.counts, groups, no_object_weight=0.1)
    for layer in range(L):
        singles = []
        for k in range(3):
            labels = torch.full((B, N), CLASSES)
            pairs = zip(matches.image, matches.query[layer], matches.target[layer], strict=True)
            for image, query, target in pairs:
                if query // N == k:
                    labels[image, query % N] = true.labels[target]
            logits = found.logits[layer].unflatten(1, (3, N))[:, k].flatten(0, 1)
            weights = torch.tensor([1.0] * CLASSES + [0.1])
            singles.append(F.cross_entropy(logits, labels.flatten(), weights))
        torch.testing.assert_close(loss[layer], torch.stack(singles).mean())


def mask_model(num_groups=2, *opts):
    return small_model(num_groups, *SMALL_MASK_BACKBONE, *opts, config=MASK2FORMER)


def test_a_batch_in_parts_has_the_losses_of_the_whole(monkeypatch):
    """Of images of one size: padding counts as image."""

    def diagonal(shape, *_):
        return torch.linspace(0, 1, shape[-1])[:, None].expand(*shape, 2)

    monkeypatch.setattr(mask, "draw_points", diagonal)
    model, batch = mask_model(), make_batch((3, 1), ((64, 64),))
    model.backbone.eval()
    whole = model(batch)
    parts = [model(batch[i : i + 1], 4.0, [3, 1]) for i in range(2)]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(part[name] for part in parts), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_finite(dtype):
    model = mask_model()
    with torch.autocast("cpu", dtype=dtype):
        losses = model(make_batch())
    sum(losses.values()).backward()
    assert all(x.isfinite() and x.dtype == torch.float32 for x in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        (found,) = model(make_batch((2,)))
    assert found["instances"].scores.isfinite().all()


def test_k_groups_have_the_gradients_of_k_models():
    """The mean of theirs where parameters are shared, a share of its own in each query bank."""
    model, single, batch = mask_model(3), mask_model(1), make_batch((2, 1), ((64, 64),))
    torch.manual_seed(0)  # the same points
    sum(model(batch).values()).backward()
    whole, expected = dict(model.named_parameters()), {}
    for g in range(3):
        for name, parameter in single.named_parameters():
            source = whole[name].detach()
            is_bank = source.shape != parameter.shape
            parameter.data.copy_(source.unflatten(0, (3, -1))[g] if is_bank else source)
        single.zero_grad()
        torch.manual_seed(0)
        sum(single(batch).values()).backward()
        for name, parameter in single.named_parameters():
            if parameter.grad is not None:
                expected.setdefault(name, []).append(parameter.grad / 3)
    for name, parts in expected.items():
        is_bank = parts[0].shape != whole[name].shape
        wanted = torch.cat(parts) if is_bank else torch.stack(parts).sum(0)
        torch.testing.assert_close(whole[name].grad, wanted, atol=1e-4, rtol=1e-3, msg=name)
