"""What holds of PETR beside the contract of every model and the recorded outputs."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from groupdetr_d2.config import build_config
from groupdetr_d2.errors import UserError
from groupdetr_d2.layers.position_encoding import view_position_embedding
from groupdetr_d2.modeling.backbone import build_checked_backbone
from groupdetr_d2.tasks.boxes3d import BOXES3D
from tests.conftest import ROOT, SHRINK, batch_for

PETR = "configs/PETR/petr_V2_99_800x320_24ep.yaml"
PETRV2 = "configs/PETR/petrv2_V2_99_800x320_24ep.yaml"


def make_model(config=PETR, *opts):
    torch.manual_seed(0)
    cfg = build_config(str(ROOT / config), [*SHRINK, *opts])
    return cfg, build_model(cfg)


def test_points_of_a_cell_are_seen_at_its_upper_left_corner():
    cfg, model = make_model(PETR, "MODEL.DETR.SPACE.NUM_DEPTHS", 64)
    batch = batch_for(cfg, (0,), ((64, 96),))
    views = model.views_of(batch, model.preprocess_image(batch))
    position = model.head.neck.position
    points = position.points(views, (4, 6)).double().sigmoid()
    points = points.unflatten(-1, (64, 3)) * position.extent + position.low  # (1, V, 24, 64, 3)
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    seen = homogeneous[0] @ batch[0]["lidar2img"].transpose(1, 2)[:, None]  # (V, 24, 64, 4)
    depths = position.depths.double().expand(6, 24, 64)
    inside = ((points > position.low + 0.1) & (points < -position.low - 0.1)).all(-1)[0]
    torch.testing.assert_close(seen[..., 2][inside], depths[inside], atol=2e-2, rtol=1e-3)
    y, x = torch.meshgrid(16.0 * torch.arange(4), 16.0 * torch.arange(6), indexing="ij")
    for i, corner in enumerate((x, y)):
        found = (seen[..., i] / seen[..., 2])[inside]
        expected = corner.flatten()[None, :, None].expand(6, 24, 64)[inside]
        torch.testing.assert_close(found, expected.double(), atol=0.5, rtol=1e-3)


def test_depths_reach_from_the_first_to_the_range():
    _, model = make_model(PETR, "MODEL.DETR.SPACE.NUM_DEPTHS", 64)
    depths = model.head.neck.position.depths
    expected = [1.0, 1.029, 1.087, 1.174]
    np.testing.assert_allclose(depths[:4], expected, atol=5e-4)
    np.testing.assert_allclose(depths[-2:], [57.52, 59.35], atol=5e-3)


@pytest.mark.parametrize("config, frames", [(PETR, 1), (PETRV2, 2)])
def test_views_are_a_set_but_for_the_embedding_of_their_places(config, frames):
    """Those of each moment."""
    cfg, model = make_model(config)
    batch = batch_for(cfg)
    last = model.head.neck.position.place.layers[-1]
    last.weight.data *= 100
    order = torch.cat([torch.tensor([3, 1, 5, 0, 2, 4]) + 6 * i for i in range(frames)])
    assert len(batch[0]["image"]) == len(order)
    other = [{**x, "image": x["image"][order], "lidar2img": x["lidar2img"][order]} for x in batch]

    def logits_of(inputs):
        with torch.no_grad():
            return model.eval().predict(inputs, model.groups).logits

    assert not torch.allclose(logits_of(batch), logits_of(other), atol=1e-4)
    torch.nn.init.zeros_(last.weight)
    torch.testing.assert_close(logits_of(batch), logits_of(other), atol=1e-5, rtol=1e-4)


def test_the_place_of_a_view_counts_among_all_views():
    """Sines of view, row and column come before their cosines."""
    found = view_position_embedding(torch.zeros(1, 6, 2, 3, dtype=torch.bool), 128)
    assert found.shape == (1, 6, 2, 3, 384)
    angle = 2 * np.pi * np.array([1, 2, 6]) / (6 + 1e-6)
    np.testing.assert_allclose(found[0, [0, 1, 5], 0, 0, 0], np.sin(angle), atol=1e-5)
    np.testing.assert_allclose(found[0, [0, 1, 5], 0, 0, 64], np.cos(angle), atol=1e-5)


@pytest.mark.parametrize("config", [PETR, PETRV2])
def test_mixed_precision_is_finite(config):
    cfg, model = make_model(config, "MODEL.DETR.NUM_GROUPS", 2)
    batch = batch_for(cfg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(x.isfinite() and x.dtype == torch.float32 for x in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_velocities_are_displacements_over_the_time_between_frames():
    cfg, model = make_model(PETRV2)
    batch = batch_for(cfg)

    def codes_of(factor):
        changed = [{**x, "interval": factor * x["interval"]} for x in batch]
        with torch.no_grad():
            return model.eval().predict(changed, model.groups).codes

    once, twice = codes_of(1), codes_of(2)
    torch.testing.assert_close(once[..., 8:], 2 * twice[..., 8:])
    assert torch.equal(once[..., :8], twice[..., :8])


def test_the_gate_of_petrv2_reads_features():
    _, one = make_model(PETR)
    _, two = make_model(PETRV2)
    assert one.head.neck.position.gate is None and two.head.neck.position.gate is not None
    assert len(one.head.predictor.box_heads) == 1 and len(two.head.predictor.box_heads) == 3


def test_samples_of_different_numbers_of_views():
    cfg, model = make_model()
    batch = batch_for(cfg)
    batch[1] = {k: x[:5] if k in ("image", "lidar2img") else x for k, x in batch[1].items()}
    images = model.preprocess_image(batch[:1])
    with pytest.raises(UserError, match=r"\[5, 6\] views"):
        model.views_of(batch, images)


def test_detections_beyond_the_range_are_left_out():
    cfg, model = make_model(PETR, "MODEL.DETR.SPACE.POSITION_RANGE", [-30.0] * 3 + [30.0] * 3)
    with torch.no_grad():
        found = model.eval()(batch_for(cfg))[0]["instances"]
        whole = model.predict(batch_for(cfg), model.groups)
    assert 0 < len(found) < 60 and (found.pred_boxes3d[:, :3].abs() <= 30).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert whole.logits.shape[2] * 10 == 60


@pytest.mark.parametrize("key", ["SIZE", "SCALES", "SPACE_SCALES", "EARLIER"])
def test_a_key_of_two_numbers_with_three_is_named(key):
    cfg = build_config(str(ROOT / PETR), ["MODEL.DEVICE", "cpu"])
    cfg.INPUT.VIEWS[key] = [1.0, 2.0, 3.0]
    with pytest.raises(UserError, match=f"INPUT.VIEWS.{key}"):
        BOXES3D.build_mapper(cfg, is_train=True)


def test_queries_seen_from_above():
    cfg, model = make_model()
    with torch.no_grad():
        predictions = model.eval().predict(batch_for(cfg), model.groups)
    probabilities, boxes = BOXES3D.of_queries(predictions, (64, 96))
    assert probabilities.shape == (6, 10) and boxes.shape == (6, 4)
    assert (boxes[:, 2:] >= boxes[:, :2]).all() and boxes.min() >= 0 and boxes.max() <= 1


def test_a_resnet_can_stand_for_vovnet():
    opts = [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.DETR.IN_FEATURES", ["res4"]),
        *("MODEL.RESNETS.OUT_FEATURES", ["res4"]),
    ]
    cfg, model = make_model(PETR, *opts)
    assert build_checked_backbone(cfg).output_shape()["res4"].stride == 16
    assert all(x.isfinite() for x in model(batch_for(cfg)).values())


def test_an_empty_range_of_earlier_frames_is_refused():
    cfg = build_config(str(ROOT / "configs/PETR/petrv2_V2_99_800x320_24ep.yaml"), [])
    for wrong in ([5, 5], [0.5, 1.5]):
        cfg.INPUT.VIEWS.EARLIER = wrong
        with pytest.raises(UserError, match="INPUT.VIEWS.EARLIER"):
            BOXES3D.build_mapper(cfg, is_train=True)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_queries_begin_as_far_apart_as_asked(num_groups):
    opts = ("MODEL.DETR.NUM_GROUPS", num_groups, "MODEL.DETR.NUM_OBJECT_QUERIES", 30)
    embeddings = {}
    for spread in (0.0, 0.5):
        _, model = make_model(PETR, *opts, "MODEL.DETR.SPACE.QUERY_SPREAD", spread)
        queries = model.head.queries
        embeddings[spread] = queries._embed(queries.bank.weight).detach()
    assert embeddings[0.0].std(0).mean() < 0.1
    assert abs(embeddings[0.5].std(0, correction=0).mean() - 0.5) < 1e-4
    assert embeddings[0.5].mean(0).abs().max() < 1e-5
    centred = embeddings[0.0] - embeddings[0.0].mean(0)
    cosine = torch.cosine_similarity(centred.flatten(), embeddings[0.5].flatten(), 0)
    assert cosine > 1 - 1e-5  # the same embedding, scaled


def test_a_single_query_stays_as_it_is():
    opts = ("MODEL.DETR.NUM_OBJECT_QUERIES", 1, "MODEL.DETR.SPACE.QUERY_SPREAD")
    one, other = (make_model(PETR, *opts, spread)[1].head.queries for spread in (0.0, 0.5))
    assert torch.equal(one.position.layers[-1].weight, other.position.layers[-1].weight)
