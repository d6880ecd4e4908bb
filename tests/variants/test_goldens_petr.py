"""Parity with recorded outputs of the official code (megvii-research/PETR)."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint import petr as converters
from groupdetr_d2.config import build_config
from groupdetr_d2.layers.position_encoding import view_position_embedding
from groupdetr_d2.losses.box3d import Box3DPredictions
from groupdetr_d2.structures import Targets
from groupdetr_d2.variants.petr import increasing_depths
from tests.conftest import ROOT
from tests.golden_rule import load_case
from tests.golden_rule_3d import make_batch, make_state_dict

LAYERS, QUERIES, KEPT = 3, 20, 50
CASES = {
    "petr": ("configs/PETR/petr_V2_99_800x320_24ep.yaml", converters.CONVERTER),
    "petrv2": ("configs/PETR/petrv2_V2_99_800x320_24ep.yaml", converters.CONVERTER_V2),
}
OFFICIAL = {"loss_class": "loss_cls", "loss_bbox": "loss_bbox"}
# largest difference of logits, and of a code's numbers: metres of the centre, and the others
LOGITS, CENTER, OTHERS = 5e-5, 3e-4, 2e-5


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    spec, outputs = load_case(request.param)
    yaml, converter = CASES[request.param]
    opts = [
        *("MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_OBJECT_QUERIES", QUERIES),
        *("MODEL.DETR.DEC_LAYERS", LAYERS, "MODEL.DETR.DROPOUT", 0.0, "INPUT.GRID_MASK", 0.0),
        *("TEST.DETECTIONS_PER_IMAGE", KEPT),
    ]
    model = build_model(build_config(str(ROOT / yaml), opts))
    converted, unmapped = converter.convert_state_dict(
        make_state_dict(spec), num_queries=QUERIES, num_classes=10
    )
    assert not unmapped
    model.load_state_dict(converted)
    return spec, outputs, model, converter


@pytest.fixture(scope="module")
def evaluated(case):
    """Features, memory and predictions of the recorded batch; training has no others here."""
    spec, _, model, _ = case
    batch = make_batch(spec)
    with torch.no_grad():
        images = model.preprocess_image(batch)
        maps = model.backbone(images.tensor.flatten(0, 1))
        views = model.views_of(batch, images)
        memory = model.head.encode(maps, views)
        predictions = model.head.decode(memory, model.groups)
    return maps, views, memory, predictions


def as_recorded(codes):
    """Codes with the yaw of old mmdet3d."""
    codes = codes.clone()
    codes[..., 6], codes[..., 7] = -codes[..., 7], -codes[..., 6].clone()
    return codes


def assert_codes(found, expected, atol=1.0):
    difference = np.abs(as_recorded(found).numpy() - expected)
    assert difference[..., [0, 1, 4]].max() < CENTER * atol
    assert np.delete(difference, [0, 1, 4], -1).max() < OTHERS * atol


def test_every_layer_of_the_evaluation(case, evaluated):
    _, outputs, _, _ = case
    *_, found = evaluated
    for layer in range(LAYERS):
        expected = outputs[f"eval_logits_{layer}"]
        np.testing.assert_allclose(found.logits[layer], expected, atol=LOGITS, rtol=0)
        assert_codes(found.codes[layer], outputs[f"eval_boxes_{layer}"])


def test_features_positions_and_queries(case, evaluated):
    spec, outputs, model, _ = case
    maps, views, memory, _ = evaluated
    neck, number = model.head.neck, spec["num_views"]
    with torch.no_grad():
        pyramid = neck.pyramid([maps[name] for name in neck.in_features])
        shape = tuple(pyramid.shape[2:])
        queries = model.head.queries(memory, model.groups)
        points = neck.position.points(views, shape)
    sides = {"stage4": maps["stage4"][:, ::48], "stage5": maps["stage5"][:, ::64]}
    for name, value in {**sides, "fpn": pyramid[:, ::16]}.items():
        expected = outputs[f"probe_{name}"]
        value = value.unflatten(0, (2, number))
        np.testing.assert_allclose(value, expected, atol=1e-4, rtol=1e-4)

    def cells(tokens):  # (B, V*H*W, C) as recorded
        return tokens.unflatten(1, (number, *shape)).permute(0, 1, 4, 2, 3)[:, :, ::16]

    projected = cells(memory.features)
    np.testing.assert_allclose(projected, outputs["probe_input_proj"], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(cells(memory.pos), outputs["probe_key_pos"], atol=1e-4, rtol=1e-4)
    first = points[0, [0, -1]].transpose(1, 2).unflatten(2, shape)
    np.testing.assert_allclose(first, outputs["probe_frustum"], atol=1e-3)
    np.testing.assert_allclose(queries.pos[0], outputs["probe_query_pos"], atol=1e-4)


@pytest.mark.parametrize("name, key", [("post", ""), ("post_narrow", "narrow_post_center_range")])
def test_detections(case, evaluated, monkeypatch, name, key):
    """Within the range of the benchmark, and within a narrow one that leaves boxes out."""
    spec, outputs, model, _ = case
    if key:
        narrow = torch.tensor(spec[key]).view(2, 3)
        monkeypatch.setattr(model.head.predictor, "kept_range", narrow)
        assert len(outputs["post_narrow_scores_0"]) < KEPT
    results = model.postprocess(evaluated[-1], make_batch(spec))
    for b, result in enumerate(results):
        found, scores = result["instances"], outputs[f"{name}_scores_{b}"]
        assert len(found) == len(scores)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        boxes, expected = found.pred_boxes3d.numpy(), outputs[f"{name}_boxes_{b}"].copy()
        expected[:, 6] = -expected[:, 6] - math.pi / 2
        labels, true = found.pred_classes.numpy(), outputs[f"{name}_labels_{b}"]
        for i in range(len(found)):  # neighbours in the order may trade places
            near = np.abs(scores - float(found.scores[i])) < 2e-5
            difference = boxes[i] - expected[near & (true == labels[i])]
            difference[:, 6] = np.sin(difference[:, 6] / 2)
            assert np.abs(difference).max(1).min() < 5e-4


def test_matches(case, evaluated):
    spec, outputs, model, _ = case
    predictions, targets = evaluated[-1], model.build_targets(make_batch(spec))
    matches = model.criterion.match(predictions, targets, model.groups)
    costs = costs_of(model, predictions, targets)
    for layer in range(LAYERS):
        for b, first in enumerate((0, targets.counts[0])):
            own = matches.image == b
            expected = outputs[f"match_l{layer}_src_{b}"]
            np.testing.assert_array_equal(matches.query[layer, own], expected)
            found = matches.target[layer, own] - first
            np.testing.assert_array_equal(found, outputs[f"match_l{layer}_tgt_{b}"])
            expected = outputs[f"match_cost_l{layer}_{b}"]
            np.testing.assert_allclose(costs[b][layer], expected, atol=2e-4, rtol=1e-5)


def test_losses_and_gradients(case):
    spec, outputs, model, converter = case
    losses = model.train()(make_batch(spec))
    assert_losses(losses, outputs, "train")
    sum(losses.values()).backward()
    assert_gradients(spec, outputs, model, converter)


def costs_of(model, predictions, targets):
    return [
        sum(weight * fn(predictions.of_image(b), own) for fn, weight, _ in model.criterion.costs)
        for b, own in enumerate(targets.of_images())
    ]


def assert_gradients(spec, outputs, model, converter):
    parameters, noise = dict(model.named_parameters()), spec["grad_norm_noise_keys"]
    keys = spec["grad_norm_all_keys"]
    for key, expected in zip(keys, outputs["grad_norm_all"], strict=True):
        name = converters.finish({converter.convert_key(key): torch.zeros(8, 1)}, {})
        found = parameters.pop(next(iter(name))).grad.norm().item()
        if key not in noise:
            np.testing.assert_allclose(found, expected, rtol=1e-2, err_msg=key)
    assert not parameters
    bank = model.head.queries.bank.weight.grad
    scale = np.abs(outputs["grad_reference_points"]).max()
    np.testing.assert_allclose(bank, outputs["grad_reference_points"], atol=1e-3 * scale)


def assert_losses(losses, outputs, prefix):
    for key, value in losses.items():
        name, layer = key[:10] if key.startswith("loss_class") else key[:9], key.rpartition("_")[2]
        before = f"d{layer}." if layer.isdigit() else ""
        expected = outputs[f"{prefix}_{before}{OFFICIAL[name]}"]
        np.testing.assert_allclose(value.item(), expected, rtol=1e-5, err_msg=key)
    assert len(losses) == 2 * LAYERS


@pytest.mark.parametrize("empty, counts", [("empty1", (7, 0)), ("empty2", (0, 0))])
def test_losses_without_targets(case, evaluated, empty, counts):
    spec, outputs, model, _ = case
    targets = model.build_targets(make_batch(spec, counts))
    losses = model.criterion(evaluated[-1], targets, model.groups)
    assert_losses(losses, outputs, f"{empty}_train")


def test_an_object_of_unknown_velocity_is_matched_but_not_regressed(case, evaluated):
    spec, outputs, model, _ = case
    batch = make_batch(spec)
    batch[0]["instances"].gt_boxes3d[0, 7:] = torch.nan
    losses = model.criterion(evaluated[-1], model.build_targets(batch), model.groups)
    assert_losses(losses, outputs, "nan1_train")


def test_padding_is_not_looked_at(case):
    spec, outputs, model, _ = case
    batch = make_batch(spec)
    for x, (height, width) in zip(batch, ((56, 148), (64, 140)), strict=True):
        x["image"] = x["image"][..., :height, :width]
    with torch.no_grad():
        found = model.eval().predict(batch, model.groups)
    np.testing.assert_allclose(found.logits[-1], outputs["padded_logits"], atol=LOGITS)
    assert_codes(found.codes[-1], outputs["padded_boxes"])


def test_units(case):
    _, outputs, model, _ = case
    np.testing.assert_allclose(
        increasing_depths(64, 1.0, 61.2), outputs["unit_lid_depths"], rtol=1e-6
    )
    logits = torch.from_numpy(outputs["unit_focal_cost_logits"])
    cost, weight, _ = model.criterion.costs[0]
    targets = Targets(torch.tensor([0, 1, 2]), counts=[3])
    predictions = Box3DPredictions(logits[None], torch.zeros(1, len(logits), 10))
    found = weight * cost(predictions, targets)[0]
    np.testing.assert_allclose(found, outputs["unit_focal_cost_out"], rtol=1e-5, atol=1e-5)
    assert view_position_embedding(torch.zeros(1, 2, 3, 4, dtype=torch.bool)).shape[-1] == 384
