"""Parity with the official deformable codes: recorded outputs, selections, losses and gradients.

As in test_goldens.py the models have 91 classes. ``..._padsel``: padded positions are selected too.
"""

import copy
import re

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.checkpoint.dab_deformable_detr import CONVERTER as dab_deformable_detr
from groupdetr_d2.checkpoint.deformable_detr import CONVERTER as deformable_detr
from groupdetr_d2.checkpoint.dino import CONVERTER as dino
from groupdetr_d2.config import build_config
from groupdetr_d2.layers.position_encoding import inverse_sigmoid
from groupdetr_d2.modeling.denoising import ContrastiveDenoising, Noise
from groupdetr_d2.modeling.two_stage import TwoStageQueries
from tests.conftest import ROOT
from tests.golden_rule import load_case, make_inputs, make_state_dict

DEFORMABLE = "Deformable-DETR/deformable_detr_R_50_50ep.yaml"
TWO_STAGE = "Deformable-DETR/deformable_detr_two_stage_R_50_50ep.yaml"
DAB = "DAB-Deformable-DETR/dab_deformable_detr_R_50_50ep.yaml"
DN_DAB = "DAB-Deformable-DETR/dn_dab_deformable_detr_R_50_50ep.yaml"
DINO = "DINO/dino_4scale_R_50_12ep.yaml"
OLD_NOISE = ["MODEL.DETR.DENOISING.BOX_NOISE", 0.4]  # of the recorded runs
# per recorded case: the converter, the yaml, what differs from it
CASES = {
    "deformable_detr": (deformable_detr, DEFORMABLE, []),
    "deformable_detr_no_refine": (deformable_detr, DEFORMABLE, ["MODEL.DETR.BOX_REFINE", False]),
    "deformable_detr_two_stage": (deformable_detr, TWO_STAGE, []),
    "deformable_detr_two_stage_padsel": (
        deformable_detr,
        TWO_STAGE,
        ["MODEL.DETR.NUM_OBJECT_QUERIES", 45],
    ),
    "dab_deformable_detr": (dab_deformable_detr, DAB, ["MODEL.DETR.CLASS_WEIGHT", 1.0]),
    "dn_dab_deformable_detr": (
        dab_deformable_detr,
        DN_DAB,
        ["MODEL.DETR.DENOISING.NUM_QUERIES", 25],
    ),
    "dino_4scale": (dino, DINO, OLD_NOISE),
    "dino_4scale_padsel": (dino, DINO, OLD_NOISE),
}
DENOISING = ["dn_dab_deformable_detr", "dino_4scale"]
LAYERS = 3
OFFICIAL = {"loss_class": "loss_ce", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return load(request.param)


def load(name):
    spec, outputs = load_case(name)
    opts = [
        *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.DETR.NUM_OBJECT_QUERIES", 25),
        *("MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", LAYERS, "MODEL.DETR.DROPOUT", 0.0),
        *("MODEL.DETR.DIM_FEEDFORWARD", 128, "MODEL.DETR.NUM_CLASSES", 91),
        *("TEST.DETECTIONS_PER_IMAGE", 100, *CASES[name][2]),
    ]
    model = build_model(build_config(str(ROOT / "configs" / CASES[name][1]), opts))
    converted, unmapped = CASES[name][0].convert_state_dict(
        make_state_dict(spec), num_queries=model.groups.num_queries, num_classes=91
    )
    assert not unmapped
    model.load_state_dict(converted)
    return name, spec, outputs, model


def official_noise(model, targets):
    """The recorded runs' draws, in the order of their code."""
    copies = model.head.denoising.num_queries // max(targets.counts) * model.head.denoising.copies
    shape = (1, copies, len(targets.labels))
    number = copies * len(targets.labels)
    flip, box = (np.random.default_rng([0, seed]) for seed in (3000, 3003))
    label = np.random.default_rng([0, 3001]).integers(0, 91, number)
    box = box.random((number, 4)).astype(np.float32)
    if isinstance(model.head.denoising, ContrastiveDenoising):
        sign = np.random.default_rng([0, 3002]).integers(0, 2, (number, 4)) * 2 - 1
        box = (sign * box + 1) / 2
    parts = (flip.random(number).astype(np.float32), (label + 0.5) / 91, box)
    flip, label, box = (torch.from_numpy(np.asarray(x)).float() for x in parts)
    return Noise(flip.view(shape), label.view(shape), box.view(*shape, 4))


@pytest.fixture
def recorded_draws(monkeypatch):
    """Makes a model draw what the official code drew."""

    def install(model, targets):
        if model.head.denoising is not None and sum(targets.counts):
            noise = official_noise(model, targets)
            monkeypatch.setattr(Noise, "draw", staticmethod(lambda *_: noise))

    return install


def official_name(loss):
    """Ours: loss_class_dn_0; DINO: loss_ce_dn_0; DN-DETR: tgt_loss_ce_0."""
    return re.sub(r"^loss_\w+?(?=_dn|_enc|_\d|$)", lambda m: OFFICIAL[m[0]], loss)


def assert_losses(losses, outputs, model, prefix):
    for key, value in losses.items():
        name = official_name(key)
        names = [name, "tgt_" + name.replace("_dn", ""), name.replace("_enc", "_interm")]
        if not key.count("_dn"):
            names.pop(1)
        found = [outputs[f"{prefix}_{n}"] for n in names if f"{prefix}_{n}" in outputs]
        weight = model.criterion.losses[re.match(r"loss_[a-z]+", key)[0]].weight
        np.testing.assert_allclose(value.item(), weight * found[0], rtol=2e-5, err_msg=key)


def test_every_layer_of_the_evaluation_and_the_first_stage(case):
    """In float64, so that the rounding of the recorded float32 run alone is left."""
    _, spec, outputs, model = case
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        found = model.predict(make_inputs(spec), model.groups.primary())
    for layer in range(LAYERS):
        for field in ("logits", "boxes"):
            expected = outputs[f"eval_{field}_{layer}"]
            np.testing.assert_allclose(getattr(found, field)[layer], expected, atol=1e-4, rtol=0)
    for stage in ("enc", "interm"):
        for field in ("logits", "boxes"):
            if f"eval_{stage}_{field}" in outputs:
                proposed = getattr(found.proposals.predictions, field)[0]
                expected = outputs[f"eval_{stage}_{field}"]
                np.testing.assert_allclose(proposed, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in CASES if "stage" in name or "dino" in name])
def test_two_stage_selection(name, monkeypatch):
    """The same positions in the same order; of those padded, all alike, any may be taken."""
    _, spec, outputs, model = load(name)
    selected, select = [], TwoStageQueries.select

    def record(scores, groups):
        selected.append(select(scores, groups))
        return selected[0]

    monkeypatch.setattr(TwoStageQueries, "select", staticmethod(record))
    with torch.no_grad():
        model.eval().predict(make_inputs(spec), model.groups.primary())
    for i in range(2):
        tied = np.float32(spec["topk"][f"invalid_token_score_image{i}"])
        scores = outputs["eval_topk_score_all_tokens"][i]
        expected = outputs["eval_topk_index"][i]
        real = np.abs(scores[expected] - tied) > 1e-4
        np.testing.assert_array_equal(selected[0][i].numpy()[real], expected[real])
        chosen = scores[selected[0][i].numpy()[~real]]
        np.testing.assert_allclose(chosen, tied, atol=1e-4)
        assert real.sum() == len(real) - spec["topk"]["invalid_tokens_selected"][i]


def test_detections(case):
    _, spec, outputs, model = case
    with torch.no_grad():
        results = model.eval()(make_inputs(spec))
    for i, result in enumerate(results):
        instances = result["instances"]
        np.testing.assert_allclose(instances.scores, outputs["post_scores"][i], atol=1e-4)
        assert (instances.pred_classes.numpy() == outputs["post_labels"][i]).mean() > 0.9


def test_matches_losses_and_gradients(case, recorded_draws):
    name, spec, outputs, model = case
    batch = make_inputs(spec)
    targets = model.train().build_targets(batch)
    recorded_draws(model, targets)
    predictions = model.predict(batch, model.groups, targets)
    matches = model.criterion.match(predictions, targets, model.groups)
    for layer in range(LAYERS if "padsel" not in name else 0):  # equal queries may trade places
        prefix = "match_last" if layer == LAYERS - 1 else f"match_aux_{layer}"
        for i, first in enumerate((0, targets.counts[0])):
            of_image = matches.image == i
            queries, found = matches.query[layer, of_image], matches.target[layer, of_image]
            np.testing.assert_array_equal(queries, outputs[f"{prefix}_src_{i}"])
            np.testing.assert_array_equal(found - first, outputs[f"{prefix}_tgt_{i}"])
    model.zero_grad()
    losses = model(batch)
    assert_losses(losses, outputs, model, "train")
    sum(losses.values()).backward()
    compare_gradients(model, CASES[name][0], spec, outputs)


def compare_gradients(model, converter, spec, outputs):
    state = make_state_dict(spec)
    prepared = converter.prepare(state)
    names = {value.numpy().tobytes(): key for key, value in prepared.items()}
    parameters, compared = dict(model.named_parameters()), 0
    for key, expected in zip(spec["grad_keys"], outputs["grad_norm_all"], strict=True):
        name = key if key in prepared else names[state[key].numpy().tobytes()]
        own = converter.convert_key(name)
        found = parameters[own].grad.norm().item()
        np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-4, err_msg=key)
        compared += 1
    assert compared > 150


@pytest.mark.parametrize("empty, counts", [("empty1", (5, 0)), ("empty2", (0, 0))])
def test_losses_without_targets(case, empty, counts, recorded_draws):
    name, spec, outputs, model = case
    batch = make_inputs(spec, counts)
    if name in DENOISING and sum(counts):
        recorded_draws(model.train(), model.build_targets(batch))
    losses = model.train()(batch)
    if "dn" in str(list(losses)) and sum(counts) and "padsel" in name:
        losses = {key: value for key, value in losses.items() if "_dn" not in key}
    assert_losses(losses, outputs, model, f"{empty}_train")


@pytest.mark.parametrize("name", DENOISING)
def test_denoising_queries_equal_the_recorded_ones(name, recorded_draws):
    """Labels, boxes, mask and outputs, with the noise that the official code drew."""
    _, spec, outputs, model = load(name)
    batch = make_inputs(spec)
    targets = model.train().build_targets(batch)
    recorded_draws(model, targets)
    images = model.preprocess_image(batch)
    seen = {}
    model.head.decoder.register_forward_pre_hook(lambda _, args: seen.update(queries=args[0]))
    with torch.no_grad():
        denoised = model.predict(batch, model.groups, targets).denoised.predictions
    queries, pad = seen["queries"], outputs["dn_query_label_ids"].shape[1]
    assert len(images) == 2
    mask = torch.from_numpy(outputs["dn_attn_mask"]).bool()
    assert torch.equal(queries.attn_mask, mask)
    boxes = inverse_sigmoid(queries.reference[:, :pad], 1e-3)
    np.testing.assert_allclose(boxes, outputs["dn_query_boxes_unsigmoid"], atol=2e-4)
    labels = torch.from_numpy(outputs["dn_query_label_ids"])
    embedded = model.head.denoising.embed(labels.clamp(min=0), 1.0)
    embedded[labels < 0] = 0
    torch.testing.assert_close(queries.content[:, :pad], embedded)
    for layer in range(LAYERS):
        logits, boxes = denoised.logits[layer], denoised.boxes[layer]
        expected = [outputs[f"train_dn_{field}_{layer}"] for field in ("logits", "boxes")]
        if not model.head.denoising.background:  # only those that stand for a target
            known = [i for i, n in zip(*np.nonzero(labels.numpy() >= 0), strict=True)]
            assert len(known) == logits.shape[1]
            expected = [np.sort(x[labels.numpy() >= 0].ravel())[None] for x in expected]
            logits, boxes = (x.flatten().sort().values[None] for x in (logits, boxes))
        np.testing.assert_allclose(logits, expected[0], atol=1e-4, rtol=0)
        np.testing.assert_allclose(boxes, expected[1], atol=1e-4, rtol=0)
