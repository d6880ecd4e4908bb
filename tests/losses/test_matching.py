from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from groupdetr_d2.groups import QueryGroups
from groupdetr_d2.losses.box2d import (
    BoxPredictions,
    BoxTargets,
    giou_cost,
    giou_loss,
    l1_cost,
    l1_loss,
)
from groupdetr_d2.losses.classification import focal_cost, focal_loss
from groupdetr_d2.losses.criterion import SetCriterion, Term
from groupdetr_d2.losses.matcher import match_groups
from groupdetr_d2.structures import Matches, Predictions

L, B, N, H = 3, 2, 6, 4


def random_predictions(num_groups=1, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    q = num_groups * N
    logits = torch.randn(L, B, q, H, generator=generator, dtype=dtype)
    boxes = torch.rand(L, B, q, 4, generator=generator, dtype=dtype) * 0.5 + 0.2
    return BoxPredictions(logits.requires_grad_(), boxes.requires_grad_())


def random_targets(counts, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    labels = torch.randint(H, (total,), generator=generator)
    boxes = torch.rand(total, 4, generator=generator, dtype=dtype) * 0.4 + 0.3
    return BoxTargets(labels, boxes, counts=list(counts))


def box_criterion():
    costs = [Term(focal_cost, 2.0), Term(l1_cost, 5.0), Term(giou_cost, 2.0)]
    losses = {
        "loss_class": Term(focal_loss, 2.0),
        "loss_bbox": Term(l1_loss, 5.0),
        "loss_giou": Term(giou_loss, 2.0),
    }
    return SetCriterion(costs, losses)


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0), (N + 3, 1)])
def test_batched_matching_equals_scipy_per_image_group_and_layer(num_groups, counts):
    """Also with no targets, and with more targets than queries."""
    groups = QueryGroups(N, num_groups)
    costs = [torch.randn(L, num_groups * N, t) for t in counts]
    matches = match_groups(costs, groups)
    for layer in range(L):
        found = {
            (b, q, t)
            for b, q, t in zip(
                matches.image.tolist(),
                matches.query[layer].tolist(),
                matches.target[layer].tolist(),
                strict=True,
            )
        }
        expected = set()
        for b, cost in enumerate(costs):
            for k in range(num_groups):
                queries, targets = linear_sum_assignment(cost[layer, k * N : (k + 1) * N].numpy())
                first = sum(counts[:b])
                expected |= {
                    (b, q + k * N, t + first) for q, t in zip(queries, targets, strict=True)
                }
        assert found == expected
        assert matches.query.shape[1] == num_groups * sum(min(N, t) for t in counts)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_costs_name_the_images(value):
    costs = [torch.zeros(L, N, 2), torch.zeros(L, N, 3)]
    costs[1][2, 4, 1] = value
    matches = match_groups(costs, QueryGroups(N))
    assert matches.non_finite_images == [1] and matches.query.shape == (L, 5)
    pairs = zip(matches.query[2].tolist(), matches.target[2].tolist(), strict=True)
    assert (4, 3) not in pairs  # the bad cost comes last; targets of the first image are 0 and 1


def test_costs_come_to_the_host_in_one_transfer(monkeypatch):
    transfers = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: transfers.append(x.shape) or original(x))
    box_criterion().match(random_predictions(3), random_targets((4, 2)), QueryGroups(N, 3))
    assert transfers == [torch.Size([L * 3 * N * 6])]


def test_focal_loss_equals_the_formula():
    predictions, targets = random_predictions(), random_targets((2, 1))
    matches = Matches(
        image=torch.tensor([0, 0, 1]),
        query=torch.tensor([[1, 2, 3]] * L),
        target=torch.tensor([[1, 0, 2]] * L),
    )
    onehot = torch.zeros(L, B, N, H)
    for image, query, target in zip([0, 0, 1], [1, 2, 3], [1, 0, 2], strict=True):
        onehot[:, image, query, targets.labels[target]] = 1
    p = predictions.logits.sigmoid()
    positive = -0.25 * (1 - p) ** 2 * p.log() * onehot
    negative = -0.75 * p**2 * (1 - p).log() * (1 - onehot)
    expected = (positive + negative).flatten(1).sum(1)
    loss = focal_loss(predictions, targets, matches)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss.sum(), predictions.logits)[0]
    wanted = torch.autograd.grad(expected.sum(), predictions.logits)[0]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_costs_by_hand():
    predictions = BoxPredictions(
        torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    )
    targets = BoxTargets(torch.tensor([1]), torch.tensor([[0.5, 0.6, 0.2, 0.2]]), counts=[1])
    p = 1 / (1 + np.exp(-2.0))
    expected = 0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p)
    assert focal_cost(predictions, targets).item() == pytest.approx(expected, rel=1e-4)
    assert l1_cost(predictions, targets).item() == pytest.approx(0.1)
    overlap, union, hull = 0.2 * 0.1, 2 * 0.04 - 0.02, 0.2 * 0.3
    assert giou_cost(predictions, targets).item() == pytest.approx(
        -(overlap / union - (hull - union) / hull), rel=1e-4
    )


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0), (N + 3, 1)])
def test_loss_of_k_copies_equals_the_loss_of_one(counts):
    one, targets = random_predictions(), random_targets(counts)
    copies = BoxPredictions(one.logits.repeat(1, 1, 3, 1), one.boxes.repeat(1, 1, 3, 1))
    alone = box_criterion()(one, targets, QueryGroups(N))
    together = box_criterion()(copies, targets, QueryGroups(N, 3))
    assert alone.keys() == together.keys() and len(alone) == 3 * L
    for name in alone:
        torch.testing.assert_close(alone[name], together[name])


@pytest.mark.parametrize("counts", [(4, 2), (0, 0)])
def test_losses_of_groups_are_the_mean_of_single_group_losses(counts):
    predictions, targets = random_predictions(3), random_targets(counts)
    together = box_criterion()(predictions, targets, QueryGroups(N, 3))
    for name, value in together.items():
        alone = [
            box_criterion()(
                BoxPredictions(
                    predictions.logits[:, :, k * N : (k + 1) * N],
                    predictions.boxes[:, :, k * N : (k + 1) * N],
                ),
                targets,
                QueryGroups(N),
            )[name]
            for k in range(3)
        ]
        torch.testing.assert_close(value, torch.stack(alone).mean())


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
def test_every_prediction_gets_a_gradient_without_nan(counts):
    predictions = random_predictions(2)
    losses = box_criterion()(predictions, random_targets(counts), QueryGroups(N, 2))
    sum(losses.values()).backward()
    assert predictions.logits.grad.abs().sum() > 0
    assert predictions.logits.grad.isfinite().all()
    assert predictions.boxes.grad is not None and predictions.boxes.grad.isfinite().all()


def test_a_mean_over_queries_is_not_divided_again():
    """Its function returns the mean itself; one over targets returns a sum."""
    predictions, targets = random_predictions(3), random_targets((4, 2))

    def mean_logit(predictions, targets, matches):
        return predictions.logits.mean((1, 2, 3))  # (L,)

    terms = {"a": Term(mean_logit, 2.0, lambda counts, groups: 1), "b": Term(mean_logit, 2.0)}
    losses = SetCriterion([Term(l1_cost, 1.0)], terms)(predictions, targets, QueryGroups(N, 3))
    expected = 2 * predictions.logits[-1].mean()
    torch.testing.assert_close(losses["a"], expected)
    torch.testing.assert_close(losses["b"], expected / (3 * 6))


def test_costs_and_losses_read_what_is_prepared():
    """Once for the object queries, with the generator's random numbers."""
    predictions, targets = random_predictions(), random_targets((4, 2))
    calls, seen = [], []

    def prepare(predictions, targets, generator):
        calls.append(torch.rand(1, generator=generator).item())
        return replace(predictions, boxes=predictions.boxes * 0 + 0.5), targets

    def loss(predictions, targets, matches):
        seen.append(predictions.boxes)
        return l1_loss(predictions, targets, matches)

    criterion = SetCriterion([Term(l1_cost, 1.0)], {"loss": Term(loss, 1.0)}, prepare=prepare)
    for _ in range(2):
        criterion(predictions, targets, QueryGroups(N), generator=torch.Generator().manual_seed(3))
    assert len(calls) == 2 and calls[0] == calls[1]
    assert all((boxes == 0.5).all() for boxes in seen)


def test_losses_tell_how_the_matching_went():
    predictions, targets = random_predictions(), random_targets((4, 2))
    losses = box_criterion()(predictions, targets, QueryGroups(N))
    assert losses.match_seconds > 0 and losses.non_finite_images == []
    with torch.no_grad():
        predictions.boxes[0, 1, 2] = float("nan")
    assert box_criterion()(predictions, targets, QueryGroups(N)).non_finite_images == [1]


def test_any_tensors_of_a_task_are_selected():
    """By image, by group, and repeated: the middle of a model does not know their names."""

    @dataclass
    class Masks(Predictions):
        masks: torch.Tensor

    masks = Masks(torch.randn(L, B, 3 * N, H), torch.randn(L, B, 3 * N, 5, 7))
    assert torch.equal(masks.of_image(1).masks, masks.masks[:, 1])
    group = masks.of_group(2, QueryGroups(N, 3))
    assert torch.equal(group.masks, masks.masks[:, :, 2 * N :]) and group.logits.shape[2] == N
    targets = random_targets((2, 1))
    first, second = targets.of_images()
    assert torch.equal(first.boxes, targets.boxes[:2]) and second.counts == [1]
    twice = targets.repeated(2)
    assert twice.counts == [4, 2] and torch.equal(twice.boxes[2:4], targets.boxes[:2])
