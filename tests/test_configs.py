"""The contract that every yaml of configs/ is held to, shrunk by a common override.

A new model is tested by existing: isolation of groups, K = 1 equals the baseline, no targets,
gradients everywhere, evaluation independent of K, of the batch's order and of padding.
"""

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from groupdetr_d2.engine.setup import build_config
from groupdetr_d2.engine.solver import build_optimizer
from groupdetr_d2.groups import move_group_to_front
from groupdetr_d2.modeling.meta_arch import padding_mask_of
from groupdetr_d2.modeling.queries import QueryBank

from .conftest import ROOT, SHRINK, all_configs, make_batch, randomize_heads

CONFIGS = all_configs()
N = 6


def build(config, num_groups):
    torch.manual_seed(0)
    cfg = build_config(str(ROOT / config), [*SHRINK, "MODEL.DETR.NUM_GROUPS", num_groups])
    model = build_model(cfg)
    randomize_heads(model)
    return cfg, model


def batch_for(cfg, counts=(3, 2)):
    return make_batch(counts, ((64, 96), (96, 64)), cfg.MODEL.DETR.NUM_CLASSES)


def predict_seeded(model, batch, targets):
    """The same noise on the same targets, where the model has denoising."""
    torch.manual_seed(0)
    return model.predict(batch, model.groups, targets)


def banks_of(model):
    return [m for m in model.modules() if isinstance(m, QueryBank)]


@pytest.mark.parametrize("config", CONFIGS)
def test_takes_a_step(config):
    cfg, model = build(config, build_config(str(ROOT / config)).MODEL.DETR.NUM_GROUPS)
    optimizer = build_optimizer(cfg, model)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = model(batch_for(cfg))
    sum(losses.values()).backward()
    optimizer.step()
    unchanged = [
        n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])
    ]
    # where content is zero ahead of the first layer, what projects it has no gradient
    unchanged = [n for n in unchanged if ".decoder.layers.0.self_attn." not in n]
    assert not unchanged and all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("training", [True, False])
def test_isolation(config, training):
    cfg, model = build(config, 3)
    model.train(training)
    batch = batch_for(cfg)
    targets = model.build_targets(batch) if training else None
    with torch.no_grad():
        before = predict_seeded(model, batch, targets)
        for bank in banks_of(model):
            bank.weight[N : 2 * N] += torch.randn(N, bank.weight.shape[1])
        after = predict_seeded(model, batch, targets)
    pairs = [(before.logits, after.logits), (before.boxes, after.boxes)]
    for old, new in pairs:
        old, new = old.unflatten(2, (3, N)), new.unflatten(2, (3, N))
        assert torch.equal(old[:, :, 0], new[:, :, 0]) and torch.equal(old[:, :, 2], new[:, :, 2])
        assert not torch.equal(old[:, :, 1], new[:, :, 1])
    if before.denoised is not None:
        old, new = before.denoised.logits.unflatten(1, (3, -1)), after.denoised.logits
        same = (old == new.unflatten(1, (3, -1))).flatten(2).all(-1).all(0)
        assert same.tolist() == [True, False, True]


@pytest.mark.parametrize("config", CONFIGS)
def test_order_of_groups_is_the_order_of_outputs(config):
    cfg, model = build(config, 3)
    batch = batch_for(cfg)
    with torch.no_grad():
        before = model.predict(batch, model.groups).logits.unflatten(2, (3, N))
        for bank in banks_of(model):
            bank.weight.copy_(move_group_to_front(bank.weight, 1, model.groups))
        after = model.predict(batch, model.groups).logits.unflatten(2, (3, N))
    torch.testing.assert_close(after, before.roll(-1, dims=2))


@pytest.mark.parametrize("config", CONFIGS)
def test_queries_of_a_group_are_a_set(config):
    cfg, model = build(config, 1)
    batch, order = batch_for(cfg), torch.randperm(N)
    with torch.no_grad():
        before = model.predict(batch, model.groups)
        for bank in banks_of(model):
            bank.weight.copy_(bank.weight[order])
        after = model.predict(batch, model.groups)
    torch.testing.assert_close(after.logits, before.logits[:, :, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_evaluation_is_independent_of_k_and_of_the_order_of_the_batch(config):
    cfg, model = build(config, 3)
    model.eval()
    batch = batch_for(cfg, (3, 2, 1))
    with torch.no_grad():
        expected = model(batch)
        for bank in banks_of(model):
            bank.weight[N:] += 1
        found = model(batch[::-1])[::-1]
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(
            a["instances"].scores, b["instances"].scores, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("counts", [(3, 0), (0, 0)])
def test_every_parameter_gets_a_finite_gradient_without_targets(config, counts):
    cfg, model = build(config, 2)
    sum(model(batch_for(cfg, counts)).values()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# SAM-DETR's RoIAlign reads over the border of the valid area, as in the official code
@pytest.mark.parametrize("config", [c for c in CONFIGS if "/SAM-DETR/" not in c])
def test_padded_memory_positions_are_never_looked_at(config):
    cfg, model = build(config, 2)
    images = model.eval().preprocess_image(batch_for(cfg))
    mask = padding_mask_of(images)
    with torch.no_grad():
        memory = model.head.neck(model.backbone(images.tensor), mask)
        expected = model.head.decode(model.head.encoder(memory), model.groups)
        assert memory.padding_mask.any() and not memory.padding_mask.all()
        memory.features[memory.padding_mask] = 100.0
        found = model.head.decode(model.head.encoder(memory), model.groups)
    assert torch.equal(expected.logits, found.logits) and torch.equal(expected.boxes, found.boxes)


@pytest.mark.parametrize("config", [c for c in CONFIGS if "/group_" in c])
def test_a_group_yaml_differs_from_its_baseline_by_k_alone(config):
    """So that K = 1 is the baseline: the same keys and, from the same weights, the same losses."""
    content = yaml.safe_load((ROOT / config).read_text())
    content.pop("OUTPUT_DIR", None)
    base = content.pop("_BASE_")
    assert list(content.pop("MODEL")["DETR"]) == ["NUM_GROUPS"] and not content
    baseline_config = str((ROOT / config).parent.relative_to(ROOT) / base)
    (cfg, baseline), (_, group) = build(baseline_config, 1), build(config, 1)
    assert list(baseline.state_dict()) == list(group.state_dict())
    losses = []
    for model in (baseline, group):
        torch.manual_seed(0)  # of denoising
        losses.append(model(batch_for(cfg)))
    for a, b in zip(*(x.values() for x in losses), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("config", CONFIGS)
def test_head_comment_states_the_command_and_the_expected_result(config):
    head = [line for line in (ROOT / config).read_text().splitlines() if line.startswith("#")]
    assert config in head[0] and len(head) >= 2
    assert "AP" in head[1] or "docs/results.md" in head[1]


def test_dc5_dilates_as_torchvision_does():
    """Stride 16; res5's blocks have dilations 1, 2, 2, unlike Detectron2's own RES5_DILATION."""
    _, model = build("configs/ConditionalDETR/conditional_detr_R_50_DC5_12ep.yaml", 1)
    res5 = model.backbone.res5
    assert model.backbone.output_shape()["res5"].stride == 16
    assert [block.conv2.dilation for block in res5] == [(1, 1), (2, 2), (2, 2)]
    assert [block.conv2.stride for block in res5] == [(1, 1)] * 3
    assert res5[0].shortcut.stride == (1, 1)


def test_stem_and_res2_are_frozen():
    _, model = build("configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml", 1)
    trained = {
        n.split(".")[1] for n, p in model.backbone.named_parameters("backbone") if p.requires_grad
    }
    assert trained == {"res3", "res4", "res5"}
