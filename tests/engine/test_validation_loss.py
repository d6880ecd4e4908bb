"""The validation loss: that of training on the same images, and nothing that disturbs a run."""

import pytest
import torch
from detectron2.evaluation.evaluator import inference_context

from groupdetr_d2.engine.train_step import TrainStep
from groupdetr_d2.engine.validation_loss import LossMeter, loss_meter_of
from groupdetr_d2.inference.augmented import build_augmented_model
from tests.conftest import MASK2FORMER, SMALL_MASK_BACKBONE, make_batch, small_config, small_model
from tests.engine.test_engine import make_step

TWO_STAGE = "configs/DINO/dino_4scale_R_50_12ep.yaml"


def measured(model, batches):
    meter = LossMeter(model).eval()
    with torch.no_grad():
        for batch in batches:
            meter(batch)
    return meter.losses()


def test_it_is_the_loss_of_one_batch_of_all_images():
    """Of the primary group: a model of that group alone in training, which has no dropout."""
    model, batch = small_model(3), make_batch((3, 0, 2), sizes=((64, 64),))
    model.train()
    model.groups = model.groups.primary()
    expected = {name: float(value) for name, value in model(batch).items()}
    model.eval()
    found = measured(model, [[x] for x in batch])
    assert found["total_loss"] == pytest.approx(sum(expected.values()), rel=1e-4)
    for name in ("loss_class", "loss_bbox", "loss_giou"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert set(found) == {"total_loss", "loss_class", "loss_bbox", "loss_giou"}
    assert measured(model, [batch]) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("config", [MASK2FORMER, TWO_STAGE])
def test_other_losses_draw_from_a_generator_of_their_own(config):
    """Masks are compared at random points; a first stage and denoising do not count."""
    own = SMALL_MASK_BACKBONE if config == MASK2FORMER else ()
    model = small_model(2, *own, config=config).eval()
    state = torch.get_rng_state()
    batch = make_batch((2, 1), num_classes=model.num_classes)
    found = measured(model, [batch])
    assert torch.equal(torch.get_rng_state(), state)
    assert measured(model, [batch]) == found and found["total_loss"] > 0
    assert not any("enc" in name or "dn" in name for name in found)


def test_detections_are_the_same_and_the_mode_comes_back():
    model, batch = small_model(2).train(), make_batch()
    meter = LossMeter(model)
    assert meter.training and model.training
    meter.eval()
    with torch.no_grad():
        pairs = zip(meter(batch), model(batch), strict=True)
    for one, other in pairs:
        assert torch.equal(one["instances"].scores, other["instances"].scores)
    meter.train(True)
    assert model.training


def test_what_has_no_loss_is_evaluated_without():
    model = small_model(1).eval()
    assert measured(model, [make_batch((0,))]) == {}
    unlabelled = [{k: x for k, x in image.items() if k != "instances"} for image in make_batch()]
    assert measured(model, [unlabelled]) == {}
    assert loss_meter_of(small_config(), model) is not None
    assert loss_meter_of(small_config("configs/quick_start/dino_shapes.yaml"), model)
    off = small_config("configs/quick_start/dino_shapes.yaml", 1, "TEST.LOSS", False)
    assert loss_meter_of(off, model) is None
    augmented = small_config("configs/quick_start/dino_shapes.yaml", 1, "TEST.AUG.ENABLED", True)
    assert loss_meter_of(augmented, build_augmented_model(augmented, model)) is None


def test_a_training_is_the_same_with_an_evaluation_between(monkeypatch):
    """Bit for bit: neither random numbers, nor modes, nor gradients are touched."""
    monkeypatch.setattr(TrainStep, "_write_metrics", lambda *_: None)
    models = [small_model(2, "MODEL.DETR.DROPOUT", 0.1).train() for _ in range(2)]
    for model, is_measured in zip(models, (False, True), strict=True):
        step = make_step(model)
        for step.iter in range(3):
            step.run_step()
            if is_measured:
                with inference_context(meter := LossMeter(model)), torch.no_grad():
                    meter(make_batch())
                assert meter.losses()["total_loss"] > 0
    expected, found = (model.state_dict() for model in models)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
