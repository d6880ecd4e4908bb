"""What makes Group DETR right, on whole models: isolation of groups, K groups are K models, K = 1
is the baseline, inference knows nothing of groups."""

import pytest
import torch

from groupdetr_d2.groups import QueryGroups, move_group_to_front
from tests.conftest import make_batch, small_model

N = 6  # queries a group in small models


def perturb_group(model, group):
    with torch.no_grad():
        rows = model.head.queries.bank.weight.view(-1, N, 32)
        rows[group] += torch.randn(N, 32)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("perturbed", [0, 1, 2])
def test_groups_are_isolated(batch_size, training, perturbed):
    """Perturbing one group leaves every other group's output as it was, bit for bit."""
    model = small_model(3).train(training)
    batch = make_batch([3] * batch_size)
    with torch.no_grad():
        before = model.predict(batch, model.groups)
        perturb_group(model, perturbed)
        after = model.predict(batch, model.groups)
    for name in ("logits", "boxes"):
        old = getattr(before, name).unflatten(2, (3, N))
        new = getattr(after, name).unflatten(2, (3, N))
        for k in range(3):
            assert torch.equal(old[:, :, k], new[:, :, k]) == (k != perturbed)


def test_no_gradient_crosses_groups():
    model = small_model(3)
    predictions = model.predict(make_batch(), model.groups)
    group = predictions.logits.unflatten(2, (3, N))[:, :, 1]
    (gradient,) = torch.autograd.grad(group.sum(), model.head.queries.bank.weight)
    per_group = gradient.view(3, N, -1).abs().sum((1, 2))
    assert per_group[1] > 0 and per_group[0] == 0 and per_group[2] == 0


def test_k_groups_in_one_pass_equal_k_single_group_passes():
    """Outputs, losses and gradients."""
    model = small_model(3).double()
    batch = make_batch()
    together = model(batch)
    sum(together.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    predictions = model.predict(batch, model.groups)

    bank = model.head.queries.bank.weight.detach().clone()
    model.zero_grad()
    alone = []
    for k in range(3):
        with torch.no_grad():
            moved = move_group_to_front(bank, k, model.groups)
            model.head.queries.bank.weight.copy_(moved)
        single = QueryGroups(N)
        found = model.predict(batch, single)
        torch.testing.assert_close(found.logits, predictions.logits.unflatten(2, (3, N))[:, :, k])
        torch.testing.assert_close(found.boxes, predictions.boxes.unflatten(2, (3, N))[:, :, k])
        losses = model.criterion(found, model.build_targets(batch), single)
        alone.append(losses)
        (sum(losses.values()) / 3).backward()
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([x[name] for x in alone]).mean())
    for name, parameter in model.named_parameters():
        if "bank" not in name:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-8, rtol=1e-5)


def test_one_group_is_the_baseline():
    """The same keys, outputs, losses and gradients as a model whose yaml never mentions groups."""
    path = "configs/ConditionalDETR/"
    baseline = small_model(1, config=path + "conditional_detr_R_50_12ep.yaml")
    group = small_model(1, config=path + "group_conditional_detr_R_50_12ep.yaml")
    assert list(baseline.state_dict()) == list(group.state_dict())
    group.load_state_dict(baseline.state_dict())
    batch = make_batch()
    for model in (baseline, group):
        sum(model(batch).values()).backward()
    for a, b in zip(baseline.parameters(), group.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_evaluation_is_independent_of_k_and_of_other_groups():
    group, baseline = small_model(3).eval(), small_model(1).eval()
    state = group.state_dict()
    for key in ("head.queries.bank.weight", "head.queries.bank.shape"):
        state[key] = state[key][:N] if key.endswith("weight") else torch.tensor([1, N])
    baseline.load_state_dict(state)
    batch = make_batch()
    with torch.no_grad():
        expected = baseline(batch)
        perturb_group(group, 1)
        for a, b in zip(expected, group(batch), strict=True):
            assert torch.equal(a["instances"].scores, b["instances"].scores)
            assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


def test_training_without_dropout_and_evaluation_agree_on_the_primary_group():
    model = small_model(3)
    batch = make_batch()
    with torch.no_grad():
        training = model.train().predict(batch, model.groups)
        evaluation = model.eval().predict(batch, model.groups.primary())
    torch.testing.assert_close(training.logits[:, :, :N], evaluation.logits)
    torch.testing.assert_close(training.boxes[:, :, :N], evaluation.boxes)


def test_evaluation_is_independent_of_the_order_of_the_batch():
    model = small_model(1).eval()
    batch = make_batch((3, 2, 1))
    with torch.no_grad():
        forward, backward = model(batch), model(batch[::-1])[::-1]
    for a, b in zip(forward, backward, strict=True):
        torch.testing.assert_close(a["instances"].scores, b["instances"].scores)


@pytest.mark.parametrize("training", [True, False])
def test_padded_memory_positions_are_never_looked_at(training):
    model = small_model(2).train(training)
    images = model.preprocess_image(make_batch())
    from groupdetr_d2.modeling.batch import padding_mask_of

    mask = padding_mask_of(images)
    features = model.backbone(images.tensor)
    memory = model.head.neck(features, mask)
    assert memory.padding_mask.any() and not memory.padding_mask.all()
    with torch.no_grad():
        expected = model.head.decode(model.head.encoder(memory), model.groups)
        memory.features[memory.padding_mask] = 1e3 * torch.randn(32)
        memory.pos[memory.padding_mask] = 1e3
        found = model.head.decode(model.head.encoder(memory), model.groups)
    assert torch.equal(expected.logits, found.logits) and torch.equal(expected.boxes, found.boxes)


@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_every_parameter_gets_a_finite_gradient(counts, num_groups):
    """Else DistributedDataParallel would stop at the first batch without objects."""
    model = small_model(num_groups)
    losses = model(make_batch(counts))
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_boxes_of_the_output_are_in_pixels_of_the_original_image():
    model = small_model(1).eval()
    image = make_batch((2,))[0]
    small = {**image, "height": 32, "width": 48}
    with torch.no_grad():
        full, half = model([image])[0]["instances"], model([small])[0]["instances"]
    assert full.image_size == (64, 96) and half.image_size == (32, 48)
    torch.testing.assert_close(full.pred_boxes.tensor / 2, half.pred_boxes.tensor)
    assert len(full) <= 100 and (full.scores[:-1] >= full.scores[1:]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_keeps_boxes_and_losses_in_float32(dtype):
    model = small_model(2)
    with torch.autocast("cpu", dtype=dtype):
        predictions = model.predict(make_batch(), model.groups)
        losses = model(make_batch())
    assert predictions.boxes.dtype == predictions.logits.dtype == torch.float32
    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
