"""Parity with the official codes: their recorded outputs, losses, matches and gradients.

The recorded models have 91 classes (columns are COCO ids) and are compared with models of 91, so
that class losses compare as well; `test_convert.py` covers the 80 columns that users get.
"""

import copy

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint.conditional_detr import CONVERTER as conditional_detr
from groupdetr_d2.checkpoint.dab_detr import CONVERTER as dab_detr
from groupdetr_d2.checkpoint.dn_detr import CONVERTER as dn_detr
from groupdetr_d2.checkpoint.sam_detr import CONVERTER as sam_detr
from groupdetr_d2.config import build_config
from groupdetr_d2.layers.position_encoding import inverse_sigmoid
from groupdetr_d2.modeling.denoising import LabelDenoising
from groupdetr_d2.structures import Memory
from tests.conftest import ROOT
from tests.golden_rule import load_case, make_inputs, make_state_dict

CONDITIONAL = "ConditionalDETR/conditional_detr_R_50_50ep.yaml"
CONDITIONAL_DC5 = "ConditionalDETR/conditional_detr_R_50_DC5_50ep.yaml"
NO_NOISE = ["LABEL_NOISE", 0.0, "BOX_NOISE", 0.0, "NUM_QUERIES", 15]
SAM_12, SAM_50 = "SAM-DETR/sam_detr_R_50_12ep.yaml", "SAM-DETR/sam_detr_R_50_50ep.yaml"
SMCA = ["MODEL.DETR.SAM.SMCA", True]
DC5 = ["MODEL.BACKBONE.NAME", "build_resnet_dc5_backbone"]
# per recorded case: the converter, the yaml, what differs from it
CASES = {
    "conditional_detr": (conditional_detr, CONDITIONAL, []),
    "conditional_detr_dc5": (conditional_detr, CONDITIONAL_DC5, []),
    "group_conditional_detr": (conditional_detr, CONDITIONAL, ["MODEL.DETR.NUM_GROUPS", 3]),
    "dab_detr": (dab_detr, "DAB-DETR/dab_detr_R_50_50ep.yaml", []),
    "sam_detr": (sam_detr, SAM_12, []),
    "sam_detr_smca": (sam_detr, SAM_50, SMCA),
    "sam_detr_smca_dc5": (sam_detr, SAM_12, [*SMCA, *DC5]),
    "sam_detr_pp": (
        sam_detr,
        "SAM-DETR/sam_detr_pp_R_50_50ep.yaml",
        [*SMCA, "MODEL.DETR.DEC_LAYERS", 6],
    ),
    "dn_detr": (
        dn_detr,
        "DN-DETR/dn_detr_R_50_50ep.yaml",
        [x if i % 2 else f"MODEL.DETR.DENOISING.{x}" for i, x in enumerate(NO_NOISE)],
    ),
}
LOSSES = {"loss_class": "loss_ce", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}


def golden_opts(name):
    return [
        *("MODEL.DEVICE", "cpu"),
        *("MODEL.DETR.NUM_OBJECT_QUERIES", 20, "MODEL.DETR.ENC_LAYERS", 2),
        *("MODEL.DETR.DEC_LAYERS", 3, "MODEL.DETR.DIM_FEEDFORWARD", 128),
        *("MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.NUM_CLASSES", 91, *CASES[name][2]),
    ]


def layers_of(outputs):
    return range(sum(key.startswith("eval_logits_") for key in outputs))


def golden_config(name):
    return str(ROOT / "configs" / CASES[name][1])


@pytest.fixture(scope="module", params=CASES)
def case(request):
    spec, outputs = load_case(request.param)
    cfg = build_config(golden_config(request.param), golden_opts(request.param))
    model = build_model(cfg)
    converted, unmapped = CASES[request.param][0].convert_state_dict(
        make_state_dict(spec), num_queries=20, num_classes=91
    )
    assert not unmapped
    model.load_state_dict(converted)
    return request.param, spec, outputs, model


def official_loss(model, outputs, name, prefix="train"):
    """The recorded value of one of our losses, times our weight of it."""
    base = next(x for x in LOSSES if name.startswith(x))
    layer = name.removeprefix(base)
    denoising = "tgt_" if layer.startswith("_dn") else ""
    recorded = outputs[f"{prefix}_{denoising}{LOSSES[base]}{layer.removeprefix('_dn')}"]
    return model.criterion.losses[base].weight * recorded


def test_every_layer_of_the_evaluation(case):
    """In float64, so that the rounding of the recorded float32 run alone is left (up to 1e-4)."""
    _, spec, outputs, model = case
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        found = model.predict(make_inputs(spec), model.groups.primary())
    for layer in layers_of(outputs):
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
    targets = model.build_targets(batch)
    predictions = model.predict(batch, model.groups, targets)
    if "train_logits_0" in outputs:
        for layer in layers_of(outputs):
            for field in ("logits", "boxes"):
                expected = outputs[f"train_{field}_{layer}"]
                found = getattr(predictions, field)[layer].detach()
                np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)

    matches = model.criterion.match(predictions, targets, model.groups)
    first = [0, targets.counts[0]]
    for layer in layers_of(outputs):
        prefix = "match_" if layer == layers_of(outputs)[-1] else f"match_l{layer}_"
        for i in range(2):
            of_image = matches.image == i
            queries, found = matches.query[layer, of_image], matches.target[layer, of_image]
            np.testing.assert_array_equal(queries, outputs[f"{prefix}src_{i}"])
            np.testing.assert_array_equal(found - first[i], outputs[f"{prefix}tgt_{i}"])

    losses = model(batch)
    for key, value in losses.items():
        expected = official_loss(model, outputs, key)
        np.testing.assert_allclose(value.item(), expected, rtol=2e-5, err_msg=key)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for key, expected in zip(spec["grad_keys"], outputs["all_grad_norms_f64"], strict=True):
        if key not in spec["noise_keys"]:
            own = CASES[name][0].convert_key(key)
            if own not in parameters:  # a projection without a norm after it
                own = own.replace("projections.0.0.", "projections.0.")
            norm = parameters[own].grad.norm().item()
            np.testing.assert_allclose(norm, expected, rtol=5e-3, err_msg=key)
            compared += 1
    assert compared > 150


@pytest.mark.parametrize("empty, counts", [("empty1", (5, 0)), ("empty2", (0, 0))])
def test_losses_without_targets(case, empty, counts):
    """The authors' group code weighs a batch without any target K times: see `normalizer`."""
    name, spec, outputs, model = case
    losses = model.train()(make_inputs(spec, counts))
    factor = 1 if sum(counts) else model.groups.num_groups
    for key, value in losses.items():
        expected = official_loss(model, outputs, key, f"{empty}_train")
        np.testing.assert_allclose(factor * value.item(), expected, rtol=2e-5)


def test_denoising_queries_equal_the_recorded_ones(case, monkeypatch):
    """Layout, mask, contents, outputs and losses, also with noise that the official code drew."""
    name, spec, outputs, model = case
    if model.head.denoising is None:
        return
    batch = make_inputs(spec)
    targets = model.build_targets(batch)
    for prefix in ("", "noisy_"):
        labels = torch.from_numpy(outputs[f"{prefix}dn_noised_labels"]).view(1, 3, 8)
        boxes = torch.from_numpy(outputs[f"{prefix}dn_noised_boxes"]).view(1, 3, 8, 4)
        if prefix:
            noised = (labels, inverse_sigmoid(boxes, 1e-3).sigmoid())
            monkeypatch.setattr(LabelDenoising, "add_noise", lambda *_, noised=noised: noised)
        memory = Memory(torch.zeros(2, 1, 256), torch.zeros(2, 1, 256))
        queries = model.head.queries(memory, model.groups)
        queries, groups, slots = model.head.denoising(queries, model.groups, targets)
        assert torch.equal(queries.attn_mask, torch.from_numpy(outputs["dn_attn_mask"]))
        np.testing.assert_array_equal(slots.query, outputs[f"{prefix}dn_map_known_indice"])
        np.testing.assert_array_equal(slots.image, outputs[f"{prefix}dn_batch_idx"])
        content = outputs[f"{prefix}dn_query_content"].swapaxes(0, 1)
        np.testing.assert_allclose(queries.content.detach(), content, atol=1e-6)
        anchors = torch.from_numpy(outputs[f"{prefix}dn_query_anchor_logits"]).transpose(0, 1)
        np.testing.assert_allclose(queries.reference.detach(), anchors.sigmoid(), atol=1e-6)
        with torch.no_grad():
            found = model.train().predict(batch, model.groups, targets).denoised.predictions
            losses = model(batch)
        for layer in layers_of(outputs):
            expected = outputs[f"{prefix}dn_logits_{layer}"][slots.image, slots.query]
            np.testing.assert_allclose(found.logits[layer, 0], expected, atol=1e-4, rtol=0)
        for key, value in losses.items():
            expected = official_loss(model, outputs, key, f"{prefix}train")
            np.testing.assert_allclose(value.item(), expected, rtol=2e-5, err_msg=key)
