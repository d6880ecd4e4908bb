"""Parity with recorded outputs of the official code (facebookresearch/Mask2Former)."""

import copy

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks

from groupdetr_d2.checkpoint.mask2former import CONVERTER
from groupdetr_d2.checkpoint.official import COCO_CATEGORY_IDS
from groupdetr_d2.config import build_config
from groupdetr_d2.losses import mask as mask_losses
from groupdetr_d2.variants.mask2former import blocked_cells
from tests.conftest import ROOT
from tests.golden_rule import SIZES, load_case, make_inputs, make_state_dict

YAML = "configs/Mask2Former/mask2former_R_50_50ep.yaml"
LAYERS, POINTS, QUERIES = 3, 256, 20
OFFICIAL = {"loss_class": "loss_ce", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
LABELS = {x: i for i, x in enumerate(COCO_CATEGORY_IDS)}


@pytest.fixture(scope="module")
def case():
    spec, outputs = load_case("mask2former")
    opts = [
        *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.DETR.NUM_OBJECT_QUERIES", QUERIES),
        *("MODEL.DETR.ENC_LAYERS", 2, "MODEL.DETR.DEC_LAYERS", LAYERS),
        *("MODEL.DETR.DIM_FEEDFORWARD", 128, "MODEL.DETR.TRAIN_NUM_POINTS", POINTS),
    ]
    model = build_model(build_config(str(ROOT / YAML), opts))
    converted, unmapped = CONVERTER.convert_state_dict(
        make_state_dict(spec), num_queries=QUERIES, num_classes=80
    )
    assert not unmapped
    model.load_state_dict(converted)
    return spec, outputs, model


def make_batch(spec, counts=(5, 3)):
    """The recorded images; masks are ellipses in the recorded boxes."""
    batch = make_inputs(spec, counts)
    for i, (height, width) in enumerate(SIZES):
        rng, number = np.random.default_rng([spec["seed"], 2000 + i]), (5, 3)[i]
        centers, sizes = rng.uniform(0.25, 0.75, (number, 2)), rng.uniform(0.1, 0.4, (number, 2))
        rows, columns = np.mgrid[:height, :width] + 0.5
        masks = [
            ((columns / width - cx) / (w / 2)) ** 2 + ((rows / height - cy) / (h / 2)) ** 2 <= 1
            for (cx, cy), (w, h) in zip(centers, sizes, strict=True)
        ]
        own = batch[i]["instances"]
        own.gt_masks = BitMasks(torch.from_numpy(np.stack(masks))[: len(own)])
        own.gt_classes = torch.tensor([LABELS[int(i)] for i in own.gt_classes], dtype=torch.long)
    return batch


def recorded_points(spec, outputs, counts):
    """The official code's draws: last layer first, then the others; per layer the matching's of
    each image, the candidates of the losses, and those drawn anew.

    Ours for the losses are in the order of targets, theirs in that of the matched queries.
    """
    order = [*range(1, LAYERS + 1), 0]  # of our layers 0 .. 3, the place in the recorded order

    def numbered(k, shape):
        draw = np.random.default_rng([spec["seed"], 4000 + k]).random((*shape, 2))
        return torch.from_numpy(draw.astype(np.float32))

    calls = []

    def in_order_of_targets(drawn, layer):
        name = "match_last" if layer == LAYERS else f"match_aux_{layer}"
        matched = [outputs[f"{name}_tgt_{i}"] for i in range(2)]
        if tuple(len(x) for x in matched) != counts:  # fewer targets, the same queries
            matched = [x[x < count] for x, count in zip(matched, counts, strict=True)]
        first = np.concatenate([matched[0], matched[1] + counts[0]])
        return drawn[torch.from_numpy(np.argsort(first))]

    def draw(shape, predictions, generator):
        if len(shape) == 3:  # of the matching: layers, images, points
            calls.clear()
            pairs = [[numbered(4 * place + b, (1, shape[2]))[0] for b in (0, 1)] for place in order]
            return torch.stack([torch.stack(pair) for pair in pairs])
        layer, second = divmod(len(calls), 2)
        calls.append(shape)
        return in_order_of_targets(numbered(4 * order[layer] + 2 + second, shape), layer)

    return draw


def test_every_layer_of_the_evaluation(case):
    spec, outputs, model = case
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        found = model.predict(make_batch(spec), model.groups)
        memory = model.encode(make_batch(spec))
    for layer in range(LAYERS + 1):
        masks = torch.einsum("bqc,bchw->bqhw", found.embeddings[layer], found.features.value)
        for values, name in ((found.logits[layer], "logits"), (masks, "masks")):
            expected = outputs[f"eval_{name}_{layer}"]
            np.testing.assert_allclose(values, expected, atol=1e-4, rtol=0)
    for layer in range(LAYERS):
        blocked = blocked_cells(found.embeddings[layer], memory.level_features[layer])
        expected = np.unpackbits(outputs[f"attn_mask_{layer}"]).astype(bool)
        expected = expected.reshape(2, QUERIES, -1)
        expected &= ~expected.all(-1, keepdims=True)  # recorded ahead of that rule
        np.testing.assert_array_equal(blocked, expected)


def test_an_image_alone_is_padded_less_and_predicted_as_recorded(case):
    spec, outputs, model = case
    for i, x in enumerate(make_batch(spec)):
        with torch.no_grad():
            found = model.eval().predict([x], model.groups)
        masks = torch.einsum("bqc,bchw->bqhw", found.embeddings[-1], found.features.value)
        np.testing.assert_allclose(found.logits[-1], outputs[f"eval_alone{i}_logits"], atol=1e-4)
        np.testing.assert_allclose(masks, outputs[f"eval_alone{i}_masks"], atol=2e-4)


def test_detections(case):
    """Scores and masks of each pair of query and class; the official order is arbitrary."""
    spec, outputs, model = case
    with torch.no_grad():
        results = model.eval()(make_batch(spec))
    for i, result in enumerate(results):
        found = result["instances"]
        expected = np.sort(outputs[f"post_scores_{i}"])[::-1]
        np.testing.assert_allclose(found.scores, expected, atol=1e-5)
        masks = np.unpackbits(outputs[f"post_unique_masks_packed_{i}"], axis=1)
        masks = masks.reshape(-1, *found.image_size).astype(bool)
        place = {q: n for n, q in enumerate(outputs[f"post_unique_queries_{i}"].tolist())}
        order = np.argsort(-outputs[f"post_scores_{i}"], kind="stable")
        queries = outputs[f"post_query_index_{i}"][order]
        official = masks[[place[int(q)] for q in queries]]
        same = (found.pred_masks.numpy() == official).mean((1, 2))
        assert (same > 0.999).mean() > 0.97  # neighbours in the order may trade places
        assert (found.pred_classes.numpy() == outputs[f"post_labels_{i}"][order]).mean() > 0.97


def test_matches_losses_and_gradients(case, monkeypatch):
    spec, outputs, model = case
    monkeypatch.setattr(mask_losses, "draw_points", recorded_points(spec, outputs, (5, 3)))
    batch = make_batch(spec)
    targets = model.train().build_targets(batch)
    with torch.no_grad():
        predictions = model.predict(batch, model.groups)
        matches = model.criterion.match(
            *model.criterion.prepare(predictions, targets, None), model.groups
        )
    for layer in range(LAYERS + 1):
        name = "match_last" if layer == LAYERS else f"match_aux_{layer}"
        for i, first in enumerate((0, targets.counts[0])):
            own = matches.image == i
            np.testing.assert_array_equal(matches.query[layer, own], outputs[f"{name}_src_{i}"])
            found = matches.target[layer, own] - first
            np.testing.assert_array_equal(found, outputs[f"{name}_tgt_{i}"])
    model.zero_grad()
    losses = model(batch)
    assert_losses(losses, outputs, model, "train")
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    for key, expected in zip(spec["grad_keys"], outputs["grad_norm_all"], strict=True):
        name = CONVERTER.finish({CONVERTER.convert_key(later(key)): torch.zeros(0)}, {})
        found = parameters[next(iter(name))].grad.norm().item()
        np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-4, err_msg=key)
    assert len(spec["grad_keys"]) == 173 == len(parameters)


def later(key):
    return next(iter(CONVERTER.prepare({key: torch.zeros(0)})))


def assert_losses(losses, outputs, model, prefix):
    for key, value in losses.items():
        name = key[:10] if key.startswith("loss_class") else key[:9]
        expected = outputs[f"{prefix}_{OFFICIAL[name]}{key.removeprefix(name)}"]
        weight = model.criterion.losses[name].weight
        np.testing.assert_allclose(value.item(), weight * expected, rtol=2e-5, err_msg=key)
    assert len(losses) == 3 * (LAYERS + 1)


@pytest.mark.parametrize("empty, counts", [("empty1", (5, 0)), ("empty2", (0, 0))])
def test_losses_without_targets(case, empty, counts, monkeypatch):
    spec, outputs, model = case
    monkeypatch.setattr(mask_losses, "draw_points", recorded_points(spec, outputs, counts))
    losses = model.train()(make_batch(spec, counts))
    assert_losses(losses, outputs, model, f"{empty}_train")
