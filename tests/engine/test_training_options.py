"""Accumulation, running mean, epochs, best checkpoint and early end."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch

from groupdetr_d2 import Predictor
from groupdetr_d2.config import ConfigError, build_config
from groupdetr_d2.engine.best import Best, BestHook, NoImprovement
from groupdetr_d2.engine.compiling import compile_parts, describe_compilation
from groupdetr_d2.engine.ema import MeanWeights
from groupdetr_d2.engine.report import LastEvaluation
from groupdetr_d2.engine.schedule import set_epochs, settle_schedule
from groupdetr_d2.engine.setup import scheduled, settle_config, settled
from groupdetr_d2.engine.train_step import TrainStep
from groupdetr_d2.engine.trainer import Trainer
from groupdetr_d2.engine.training_data import number_of_images
from groupdetr_d2.errors import UserError
from groupdetr_d2.tasks.boxes import BOXES
from tests.conftest import make_batch, small_config, small_model
from tests.data.test_data import custom_config
from tests.engine.test_engine import run_in_process, tiny_run

CONFIG = "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml"


def gradients_of(config, parts, batch):
    model = small_model(2, config=config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    arguments = {"clip_norm": 0.1, "amp_dtype": None, "seed": 0, "accumulate_steps": parts}
    losses, _ = TrainStep(model, None, optimizer, **arguments).compute_gradients(batch)
    return losses, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("counts", [(3, 0, 1, 5), (0, 0, 0, 0)])
@pytest.mark.parametrize(
    "config", [CONFIG, "configs/DAB-Deformable-DETR/dab_deformable_detr_two_stage_R_50_50ep.yaml"]
)
def test_four_parts_of_one_image_equal_one_part_of_four(config, counts):
    """Also where some parts have no targets; images of one size, since padding is seen."""
    batch = make_batch(counts, sizes=((64, 96),))
    (losses, gradients), (again, same) = (gradients_of(config, n, batch) for n in (1, 4))
    assert list(losses) == list(again)
    for name, value in losses.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("parts", [0, 3])
def test_parts_that_do_not_divide_a_batch_are_an_error(parts, tmp_path):
    cfg = custom_config(tmp_path, "SOLVER.ACCUMULATE_STEPS", parts)
    with pytest.raises(ConfigError, match="ACCUMULATE_STEPS .* must divide"):
        settle_config(cfg)


def test_the_running_mean_by_hand():
    """It follows at once at first, then slowly; buffers are copied."""
    model = torch.nn.BatchNorm1d(1)
    mean, expected = MeanWeights(model, decay=0.5), 0.0
    for i, value in enumerate((4.0, 8.0, 2.0, 6.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)
        mean.update(model)
        share = min(0.5, (1 + i) / (10 + i))
        expected = value if i == 0 else share * expected + (1 - share) * value
        assert mean.model.weight.item() == pytest.approx(expected)
        assert mean.model.running_mean.item() == value
    assert mean.state_dict()["updates"] == 4


def test_without_a_ramp_the_mean_starts_from_the_trained_weights():
    """Those that are loaded, after the mean has been built; and from a mean that is resumed."""
    model = torch.nn.Linear(1, 1, bias=False)
    mean, resumed = (MeanWeights(model, decay=0.75, ramp=False) for _ in range(2))
    expected = 8.0
    with torch.no_grad():
        model.weight.fill_(expected)
    for value in (4.0, 6.0):
        mean.start(model)
        with torch.no_grad():
            model.weight.fill_(value)
        mean.update(model)
        expected = 0.75 * expected + 0.25 * value
        assert mean.model.weight.item() == pytest.approx(expected)
    resumed.load_state_dict(mean.state_dict())
    resumed.start(model)
    assert resumed.model.weight.item() == pytest.approx(expected) and resumed.updates == 2


@pytest.mark.parametrize("size", ["B", "H"])
def test_the_mean_of_a_fine_tuned_vit_has_no_ramp(size):
    yamls = (f"dino_4scale_ViT_{size}_{x}.yaml" for x in ("objects365_24ep", "20ep"))
    ramps = [build_config(f"configs/DINO/{name}").MODEL.EMA.RAMP for name in yamls]
    assert ramps == [True, False] and small_config(CONFIG).MODEL.EMA.RAMP


def test_the_running_mean_is_resumed_and_used(tmp_path):
    ema = ("MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", 0.9)
    whole = run_in_process(tiny_run(tmp_path, *ema, out="whole"))
    run_in_process(tiny_run(tmp_path, *ema, out="parts"), iterations=3)
    parts = run_in_process(tiny_run(tmp_path, *ema, out="parts"), resume=True)
    mean = whole.mean.model.state_dict()
    for name, value in parts.mean.model.state_dict().items():
        assert torch.equal(value, mean[name]), name
    found = Predictor(tmp_path / "whole/model_final.pth").model.state_dict()
    assert all(torch.equal(value, mean[name]) for name, value in found.items())
    assert any(not torch.equal(v, mean[n]) for n, v in whole.raw_model.state_dict().items())


def test_epochs_become_iterations(caplog):
    cfg = build_config(CONFIG, ["SOLVER.EPOCHS", 24])
    with caplog.at_level(logging.INFO):
        set_epochs(cfg, 16000)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (24000, (22000,))  # 11 of 12
    assert cfg.SOLVER.CHECKPOINT_PERIOD == cfg.TEST.EVAL_PERIOD == 1000
    assert "24 of 16000 images in batches of 16: MAX_ITER 24000" in caplog.text
    set_epochs(cfg, 16000)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (24000, (22000,))


def test_epochs_of_ones_own_data(tmp_path):
    cfg = custom_config(tmp_path, "SOLVER.EPOCHS", 4)
    cfg = scheduled(cfg, number_of_images(Trainer.build_train_loader(settled(cfg))))
    assert cfg.SOLVER.MAX_ITER == 6 and cfg.SOLVER.CHECKPOINT_PERIOD == 2  # 3 images by 2


def test_the_learning_rate_of_another_batch_size(caplog):
    cfg = build_config(CONFIG, ["SOLVER.REFERENCE_BATCH", 16, "SOLVER.IMS_PER_BATCH", 4])
    with caplog.at_level(logging.INFO):
        settle_schedule(cfg, None)
    assert cfg.SOLVER.BASE_LR == pytest.approx(2.5e-5) and "it becomes 2.5e-05" in caplog.text
    settle_schedule(cfg, None)
    assert cfg.SOLVER.BASE_LR == pytest.approx(2.5e-5)


class Saves:
    def __init__(self):
        self.names = []

    def save(self, name, **_):
        self.names.append(name)


def play(values, patience, best=None):
    """Evaluations with these APs, one every iteration."""
    best, saves = best or Best(), Saves()
    hook = BestHook(best, saves, BOXES, patience)
    hook.trainer = SimpleNamespace(last_evaluation=None)
    for i, value in enumerate(values):
        results = {"bbox": {"AP": value}}
        hook.trainer.last_evaluation = LastEvaluation(i + 1, results, None)
        hook.after_step()
        hook.after_step()  # the same results again: no evaluation
    return best, saves


def test_the_best_checkpoint_is_saved_and_remembered():
    best, saves = play([1.0, 3.0, 2.0, float("nan"), 3.5], patience=0)
    assert len(saves.names) == 3 and (best.value, best.iteration) == (3.5, 5)
    resumed = Best()
    resumed.load_state_dict(best.state_dict())
    _, saves = play([3.4], patience=0, best=resumed)
    assert not saves.names and resumed.waited == 1


def test_a_training_that_gets_no_better_ends():
    play([1.0, 0.5, 2.0, 1.0], patience=2)
    with pytest.raises(NoImprovement, match="the best is 2.00 after 3 iterations"):
        play([1.0, 0.5, 2.0, 1.0, 1.0], patience=2)


def test_an_early_end_leaves_a_report_and_the_best_checkpoint(tmp_path, package_log):
    opts = ["TEST.EVAL_PERIOD", 1, "SOLVER.PATIENCE", 2, "SOLVER.BASE_LR", 0.0]
    opts += ["SOLVER.KEEP_CHECKPOINTS", 1, "SOLVER.CHECKPOINT_PERIOD", 1]
    trainer = run_in_process(tiny_run(tmp_path, *opts), pictures=True)
    assert trainer.iter == 2 and "no better bbox/AP in 2 evaluations" in package_log.text
    names = {p.name for p in (tmp_path / "out").glob("*.pth")}
    assert names == {"model_best.pth", "model_0000002.pth"}
    assert (tmp_path / "out/predictions.png").is_file() and "model_best.pth" in package_log.text
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000002.pth"


@pytest.mark.parametrize(
    "config, breaks", [(CONFIG, 0), ("configs/DINO/dino_4scale_R_50_12ep.yaml", 1)]
)
def test_compiled_parts_give_the_same_losses_and_gradients(config, breaks):
    """With the compiler's front end, which is what can go wrong in Python code.

    Deformable sampling is a function of its own, at which a graph ends.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for backend in ("", "aot_eager"):
        model = small_model(2, config=config)
        with torch.no_grad():  # at first points lie on the kinks between cells, to a last digit
            for name, parameter in model.named_parameters():
                parameter += 0.13 if name.endswith("sampling_offsets.bias") else 0.0
        names = set(model.state_dict())
        if backend:
            parts = compile_parts(model, backend)
            assert parts[:3] == ["backbone", "head.encoder", "head.decoder.layers.0"]
        assert set(model.state_dict()) == names
        torch.manual_seed(0)
        losses = model(make_batch())
        sum(losses.values()).backward()
        results.append((losses, {n: p.grad for n, p in model.named_parameters()}))
    (expected, gradients), (found, same) = results
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    text = describe_compilation()
    assert f" {breaks} breaks" in text and "compile: 0 graphs" not in text


def test_a_training_can_be_evaluated_with_augmentation(tmp_path, every_iteration):
    aug = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(40,)", "TEST.EVAL_PERIOD", 2]
    trainer = run_in_process(tiny_run(tmp_path, *aug))
    assert len(every_iteration) == 6 and trainer.raw_model.training


def test_an_unknown_compiler_is_named():
    with pytest.raises(UserError, match="MODEL.COMPILE is 'inducer'; it can be .*inductor"):
        small_config(CONFIG, 1, "MODEL.COMPILE", "inducer")


def test_a_training_says_what_was_compiled(tmp_path, package_log):
    # of one size and one layer, as the compiler takes seconds for another
    size = ["INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MAX_SIZE_TRAIN", 48]
    opts = ["MODEL.COMPILE", "eager", "DATASETS.TEST", "()"]
    run_in_process(tiny_run(tmp_path, *opts, *size, "MODEL.DETR.DEC_LAYERS", 1))
    assert "MODEL.COMPILE eager: backbone, head.encoder, head.dec" in package_log.text
    # on a CPU dropout has a seed of its own, which the compiler cannot follow: that is said
    assert re.search(r"torch.compile: \d+ graphs of \d+ operations, \d+ breaks", package_log.text)


def test_no_training_option_is_on_unless_it_is_asked_for():
    solver = small_config(CONFIG).SOLVER
    assert (solver.ACCUMULATE_STEPS, solver.EPOCHS, solver.REFERENCE_BATCH) == (1, 0, 0)
    assert (solver.PATIENCE, solver.KEEP_CHECKPOINTS, solver.SHARDING) == (0, 0, "")
