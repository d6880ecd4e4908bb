"""Parity with the official codes: their recorded outputs, losses, matches and gradients.

The recorded models have 91 classes (columns are COCO ids) and are compared with models of 91, so
that class losses compare as well; `test_convert.py` covers the 80 columns that users get.
"""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint.conditional_detr import convert_key, convert_state_dict
from groupdetr_d2.engine.setup import build_config

from .conftest import ROOT
from .golden_rule import load_case, make_inputs, make_state_dict

CASES = ("conditional_detr", "conditional_detr_dc5", "group_conditional_detr")
LOSSES = {
    "loss_class": ("loss_ce", 2),
    "loss_bbox": ("loss_bbox", 5),
    "loss_giou": ("loss_giou", 2),
}


def golden_opts(name):
    return [
        *("MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_GROUPS", 3 if name.startswith("group") else 1),
        *("MODEL.DETR.NUM_OBJECT_QUERIES", 20, "MODEL.DETR.ENC_LAYERS", 2),
        *("MODEL.DETR.DEC_LAYERS", 3, "MODEL.DETR.DIM_FEEDFORWARD", 128),
        *("MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.NUM_CLASSES", 91),
    ]


def golden_config(name):
    dc5 = "DC5_" if name.endswith("dc5") else ""
    return str(ROOT / f"configs/ConditionalDETR/conditional_detr_R_50_{dc5}50ep.yaml")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    spec, outputs = load_case(request.param)
    model = build_model(build_config(golden_config(request.param), golden_opts(request.param)))
    converted, homeless = convert_state_dict(make_state_dict(spec), num_queries=20, num_classes=91)
    assert not homeless
    model.load_state_dict(converted)
    return request.param, spec, outputs, model


def official_name(name):
    base = next(x for x in LOSSES if name.startswith(x))
    return LOSSES[base][0] + name[len(base) :], LOSSES[base][1]


def test_every_layer_of_the_evaluation(case):
    _, spec, outputs, model = case
    with torch.no_grad():
        found = model.eval().predict(make_inputs(spec), model.groups.primary())
    for layer in range(3):
        for field in ("logits", "boxes"):
            expected = outputs[f"eval_{field}_{layer}"]
            np.testing.assert_allclose(getattr(found, field)[layer], expected, atol=1e-4, rtol=0)


def test_detections(case):
    """Scores in order; a label or box may trade places with one of almost the same score."""
    _, spec, outputs, model = case
    with torch.no_grad():
        results = model.eval()(make_inputs(spec))
    for i, result in enumerate(results):
        instances = result["instances"]
        scores = outputs["post_scores"][i]
        np.testing.assert_allclose(instances.scores, scores, atol=1e-4)
        same = instances.pred_classes.numpy() == outputs["post_labels"][i]
        assert same.mean() > 0.9
        clipped = outputs["post_boxes"][i].clip(0)
        clipped[:, 0::2] = clipped[:, 0::2].clip(max=instances.image_size[1])
        clipped[:, 1::2] = clipped[:, 1::2].clip(max=instances.image_size[0])
        close = np.abs(instances.pred_boxes.tensor.numpy() - clipped).max(1) < 0.05
        assert close[same].mean() > 0.9


def test_training_losses_matches_and_gradients(case):
    name, spec, outputs, model = case
    model.train().zero_grad()
    batch = make_inputs(spec)
    predictions = model.predict(batch, model.groups)
    if name.startswith("group"):
        for layer in range(3):
            for field in ("logits", "boxes"):
                expected = outputs[f"train_{field}_{layer}"]
                found = getattr(predictions, field)[layer].detach()
                np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)

    targets = model.build_targets(batch)
    matches = model.criterion.match(predictions, targets, model.groups)
    first = [0, targets.counts[0]]
    for layer in range(3):
        prefix = "match_" if layer == 2 else f"match_l{layer}_"
        for i in range(2):
            of_image = matches.image == i
            queries, found = matches.query[layer, of_image], matches.target[layer, of_image]
            np.testing.assert_array_equal(queries, outputs[f"{prefix}src_{i}"])
            np.testing.assert_array_equal(found - first[i], outputs[f"{prefix}tgt_{i}"])

    losses = model(batch)
    for key, value in losses.items():
        official, weight = official_name(key)
        expected = weight * outputs[f"train_{official}"]
        np.testing.assert_allclose(value.item(), expected, rtol=2e-5)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for key, expected in zip(spec["grad_keys"], outputs["all_grad_norms_f64"], strict=True):
        if key not in spec["noise_keys"]:
            norm = parameters[convert_key(key)].grad.norm().item()
            np.testing.assert_allclose(norm, expected, rtol=5e-3, err_msg=key)
            compared += 1
    assert compared > 150


@pytest.mark.parametrize("empty, counts", [("empty1", (5, 0)), ("empty2", (0, 0))])
def test_losses_without_targets(case, empty, counts):
    """The authors' group code weighs a batch without any target K times: see `normalizer`."""
    name, spec, outputs, model = case
    losses = model.train()(make_inputs(spec, counts))
    factor = 3 if name.startswith("group") and not sum(counts) else 1
    for key, value in losses.items():
        official, weight = official_name(key)
        expected = weight * outputs[f"{empty}_train_{official}"]
        np.testing.assert_allclose(factor * value.item(), expected, rtol=2e-5)
