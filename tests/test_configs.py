"""The contract that every yaml of configs/ is held to, shrunk by a common override.

A new model is tested by existing: isolation of groups, K = 1 equals the baseline, no targets,
gradients everywhere, evaluation independent of K, of the batch's order and of padding.
"""

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from groupdetr_d2.config import build_config
from groupdetr_d2.engine.solver import build_optimizer
from groupdetr_d2.layers.per_group import PerGroup
from groupdetr_d2.modeling.batch import padding_mask_of
from groupdetr_d2.modeling.denoising import Noise
from groupdetr_d2.modeling.queries import QueryBank
from tests.conftest import (
    ROOT,
    SHRINK,
    all_configs,
    batch_for,
    distinct_models,
    randomize_heads,
)

N, K = 6, 3


def is_two_stage(config):
    detr = build_config(str(ROOT / config)).MODEL.DETR
    return bool(detr.TWO_STAGE) or detr.VARIANT == "dino"


CONFIGS = all_configs()
MODELS = distinct_models()


def build(config, num_groups):
    torch.manual_seed(0)
    cfg = build_config(str(ROOT / config), [*SHRINK, "MODEL.DETR.NUM_GROUPS", num_groups])
    model = build_model(cfg)
    randomize_heads(model)
    return cfg, model


def stacked(model):
    """Everything that belongs to single groups, as views with the group ahead."""
    for module in model.modules():
        if isinstance(module, QueryBank):
            yield module.weight.data.unflatten(0, (-1, N))
        elif isinstance(module, PerGroup):
            yield from (parameter.data for parameter in module.parameters())


def predict_seeded(model, batch, targets):
    """The same noise on the same targets, where the model has denoising."""
    torch.manual_seed(0)
    return model.predict(batch, model.groups, targets)


@pytest.mark.parametrize("config", MODELS)
def test_takes_a_step(config):
    cfg, model = build(config, 2)
    optimizer = build_optimizer(cfg, model)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = model(batch_for(cfg))
    sum(losses.values()).backward()
    optimizer.step()
    unchanged = [
        n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])
    ]
    # where content is zero ahead of the first layer, what projects it has no gradient, nor has what
    # a query of deformable attention is made of, whose weights start at zero
    expected = (".decoder.layers.0.self_attn.", ".level_embedding")
    unchanged = [n for n in unchanged if not any(x in n for x in expected)]
    assert not unchanged and all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("config", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_isolation(config, training):
    cfg, model = build(config, 3)
    model.train(training)
    batch = batch_for(cfg)
    targets = model.build_targets(batch) if training else None
    with torch.no_grad():
        before = predict_seeded(model, batch, targets)
        for part in stacked(model):
            part[1] += torch.randn(part[1].shape)
        after = predict_seeded(model, batch, targets)
    for old, new in zip(tensors_of(before), tensors_of(after), strict=True):
        old, new = old.unflatten(2, (K, -1)), new.unflatten(2, (K, -1))
        assert torch.equal(old[:, :, 0], new[:, :, 0]) and torch.equal(old[:, :, 2], new[:, :, 2])
        assert not torch.equal(old[:, :, 1], new[:, :, 1])


def tensors_of(predictions):
    """All outputs, (L, B, K * a group's, .)."""
    for part in (predictions, predictions.denoised, predictions.proposals):
        part = getattr(part, "predictions", part)
        values = () if part is None else vars(part).values()
        yield from (x for x in values if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("config", MODELS)
def test_k_groups_equal_k_models_of_one_group(config, monkeypatch):
    """Outputs of each group, and losses: the mean over groups. Each has noise of its own."""
    (cfg, model), (_, single) = build(config, K), build(config, 1)
    batch = batch_for(cfg)
    targets = model.build_targets(batch)
    drawn, draw = [], Noise.draw
    monkeypatch.setattr(
        Noise, "draw", staticmethod(lambda *args: drawn.append(draw(*args)) or drawn[-1])
    )
    with torch.no_grad():
        together = model.predict(batch, model.groups, targets)
        torch.manual_seed(0)  # the same points of masks
        losses, singles = model.criterion(together, targets, model.groups), []
        for g in range(K):
            copy_group(model, single, g)
            if drawn:
                noise = [x[g : g + 1] for x in vars(drawn[0]).values()]
                monkeypatch.setattr(Noise, "draw", staticmethod(lambda *_, n=noise: Noise(*n)))
            alone = single.predict(batch, single.groups, targets)
            for a, b in zip(tensors_of(together), tensors_of(alone), strict=True):
                torch.testing.assert_close(
                    a.unflatten(2, (K, -1))[:, :, g], b, atol=2e-5, rtol=1e-4
                )
            torch.manual_seed(0)
            singles.append(single.criterion(alone, targets, single.groups))
    for name, value in losses.items():
        mean = torch.stack([x[name] for x in singles]).mean()
        torch.testing.assert_close(value, mean, atol=1e-4, rtol=1e-4)


def copy_group(model, single, g):
    """Makes `single` the model whose only group is group `g`."""
    theirs = dict(model.named_parameters())
    for name, parameter in single.named_parameters():
        source = theirs[name]
        if source.shape != parameter.shape:
            source = source.unflatten(0, (K, -1))[g].reshape(parameter.shape)
        parameter.data.copy_(source)


@pytest.mark.parametrize("config", MODELS)
def test_order_of_groups_is_the_order_of_outputs(config):
    cfg, model = build(config, 3)
    batch = batch_for(cfg)
    with torch.no_grad():
        before = model.predict(batch, model.groups).logits.unflatten(2, (3, N))
        for part in stacked(model):
            part.copy_(part.roll(-1, dims=0))
        after = model.predict(batch, model.groups).logits.unflatten(2, (3, N))
    torch.testing.assert_close(after, before.roll(-1, dims=2))


# in two-stage models, what is learned belongs to a rank among the proposals
@pytest.mark.parametrize("config", [c for c in MODELS if not is_two_stage(c)])
def test_queries_of_a_group_are_a_set(config):
    cfg, model = build(config, 1)
    batch, order = batch_for(cfg), torch.randperm(N)
    with torch.no_grad():
        before = model.predict(batch, model.groups)
        for bank in stacked(model):
            bank.copy_(bank[:, order])
        after = model.predict(batch, model.groups)
    torch.testing.assert_close(after.logits, before.logits[:, :, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", MODELS)
def test_evaluation_is_independent_of_k_and_of_the_order_of_the_batch(config):
    cfg, model = build(config, 3)
    model.eval()
    batch = batch_for(cfg, (3, 2, 1))
    with torch.no_grad():
        expected = model(batch)
        for part in stacked(model):
            part[1:] += 1
        found = model(batch[::-1])[::-1]
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(
            a["instances"].scores, b["instances"].scores, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("config", MODELS)
@pytest.mark.parametrize("counts", [(3, 0), (0, 0)])
def test_every_parameter_gets_a_finite_gradient_without_targets(config, counts):
    cfg, model = build(config, 2)
    sum(model(batch_for(cfg, counts)).values()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def keep_boxes_inside(model):
    """Fixed boxes around the middle: SAM-DETR's RoIAlign reads all that a box covers, as in the
    official code, so that a box over the border of the valid area reads padding."""
    with torch.no_grad():
        model.head.queries.bank.weight.copy_(torch.tensor([0.0, 0.0, -1.4, -1.4]))
        model.head.queries.bank.weight.add_(0.1 * torch.randn(2 * N, 4))
        for head in model.head.predictor.layer_box_heads:
            head.layers[-1].weight.zero_()
            head.layers[-1].bias.zero_()


def projected_memory(model, batch):
    """The memory ahead of the encoder."""
    images = model.preprocess_image(batch)
    if images.tensor.dim() == 4:
        return model.head.neck(model.backbone(images.tensor), padding_mask_of(images))
    views = model.views_of(batch, images)
    return model.head.neck(model.backbone(images.tensor.flatten(0, 1)), views)


# Mask2Former has no padding mask: it treats padding as image, see its docstring
@pytest.mark.parametrize("config", [c for c in MODELS if "mask2former" not in c])
def test_padded_memory_positions_are_never_looked_at(config):
    cfg, model = build(config, 2)
    if "/SAM-DETR/" in config:
        keep_boxes_inside(model)
    with torch.no_grad():
        memory = projected_memory(model.eval(), batch_for(cfg))
        expected = model.head.decode(model.head.encoder(memory), model.groups)
        assert memory.padding_mask.any() and not memory.padding_mask.all()
        memory.features[memory.padding_mask] = 100.0
        found = model.head.decode(model.head.encoder(memory), model.groups)
    for old, new in zip(tensors_of(expected), tensors_of(found), strict=True):
        assert torch.equal(old, new)


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


def test_swin_leaves_out_more_blocks_with_depth():
    """From none of the first block's to MODEL.SWIN.DROP_PATH_RATE, in training alone."""
    config = "configs/DINO/dino_4scale_Swin_L_12ep.yaml"
    opts = ["MODEL.SWIN.EMBED_DIM", 48, "MODEL.SWIN.WINDOW_SIZE", 7, "MODEL.DEVICE", "cpu"]
    backbone = build_model(build_config(str(ROOT / config), opts)).backbone
    rates = [block.drop_path.p for layer in backbone.layers for block in layer.blocks]
    assert len(rates) == 24 and rates[0] == 0 and rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.2)
    shapes = backbone.output_shape()
    assert [shapes[f"p{i}"].stride for i in (1, 2, 3)] == [8, 16, 32]
    images = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    for training in (True, False):
        backbone.train(training)
        once, again = backbone(images)["p3"], backbone(images)["p3"]
        assert torch.equal(once, again) != training


def test_stem_and_res2_are_frozen():
    _, model = build("configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml", 1)
    trained = {
        n.split(".")[1] for n, p in model.backbone.named_parameters("backbone") if p.requires_grad
    }
    assert trained == {"res3", "res4", "res5"}
