import argparse
import itertools
import json
import re
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm

from groupdetr_d2.checkpoint import CheckpointError
from groupdetr_d2.config import ConfigError, build_config
from groupdetr_d2.engine.launch import launch
from groupdetr_d2.engine.setup import settled
from groupdetr_d2.engine.solver import build_optimizer
from groupdetr_d2.engine.train_step import NonFiniteLossError, TrainStep
from groupdetr_d2.engine.trainer import Trainer, wrap_for_processes
from groupdetr_d2.engine.training_data import load_training_set
from tests import ROOT, warm
from tests.conftest import make_batch, small_config, small_model
from tests.data.test_data import write_set
from tests.recorded_training import leave_pictures_out


def train_net(*arguments, check=True, interpreter=False):
    """Runs train_net.py; with `interpreter` in a fresh one, as a user does."""
    words = [str(x) for x in arguments]
    if interpreter:
        command = [sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    else:
        done = run_warm(["train", *words])
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def run_warm(words):
    running = warm.start(warm.run_command, words)
    stdout, stderr = running.communicate()
    return subprocess.CompletedProcess(words, running.returncode, stdout, stderr)


def tiny_run(tmp_path, *opts, out="out"):
    """The arguments of a training on a handful of generated images."""
    images = str(tmp_path / "images")
    train, val = (write_set(tmp_path, name, num_images=8) for name in ("train", "val"))
    model = [
        *("MODEL.BACKBONE.NAME", "build_small_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.SMALL_RESNET.CHANNELS", "[32, 32, 64]", "MODEL.RESNETS.NORM", "GN"),
        *("MODEL.RESNETS.OUT_FEATURES", "['res3']", "MODEL.DETR.IN_FEATURES", "['res3']"),
        *("MODEL.DETR.HIDDEN_DIM", 32, "MODEL.DETR.NHEADS", 4, "MODEL.DETR.NUM_GROUPS", 2),
        *("MODEL.DETR.NUM_OBJECT_QUERIES", 5, "MODEL.DETR.ENC_LAYERS", 1),
        *("MODEL.DETR.DEC_LAYERS", 2, "MODEL.DETR.DROPOUT", 0.1, "MODEL.WEIGHTS", ""),
    ]
    solver = [
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 6, "SOLVER.STEPS", "[5]", "SEED", 3),
        *("SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 0, "DATALOADER.NUM_WORKERS", 0),
        *("INPUT.MIN_SIZE_TRAIN", "(40, 48)", "INPUT.MIN_SIZE_TEST", 48, "MODEL.DEVICE", "cpu"),
        *("INPUT.CROP.ENABLED", False, "OUTPUT_DIR", tmp_path / out),
    ]
    config = ROOT / "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml"
    data = ["--train-json", train, "--train-images", images, "--val-json", val]
    return ["--config-file", config, *data, "--val-images", images, *model, *solver, *opts]


def losses_of(folder):
    """Total loss by iteration, from the lines that Detectron2's JSON writer leaves."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return {r["iteration"]: r["total_loss"] for r in map(json.loads, lines) if "total_loss" in r}


def run_in_process(arguments, *, resume=False, iterations=None, pictures=False):
    from groupdetr_d2.commands import build_parser
    from groupdetr_d2.engine.setup import setup_config

    args = build_parser().parse_args(["train", *map(str, arguments)])
    args.resume = resume
    cfg = setup_config(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    if iterations:
        trainer.max_iter = iterations
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            leave_pictures_out(patch.setattr)
        trainer.train()
    return trainer


def test_resumed_training_gives_the_losses_of_an_uninterrupted_one(tmp_path, every_iteration):
    """With dropout, augmentation and a learning-rate step; bit for bit."""
    run_in_process(tiny_run(tmp_path, out="whole"))
    whole = list(every_iteration)
    every_iteration.clear()
    run_in_process(tiny_run(tmp_path, out="parts"), iterations=3)
    run_in_process(tiny_run(tmp_path, out="parts"), resume=True)
    assert len(whole) == 6 and every_iteration == whole


def save_losses_and_gradients(args):
    """Run by `launch` in one or two processes, each on its share of the same four images.

    They are of one size: the backbone sees padding, and it would differ between the two.
    """
    model = small_model(2)
    share = make_batch((3, 0, 1, 5), sizes=((64, 96),))[comm.get_rank() :: comm.get_world_size()]
    wrapped = wrap_for_processes(model)  # has to outlive backward
    losses = wrapped(share)
    sum(losses.values()).backward()
    totals = {name: value.item() for name, value in losses.items()}
    gathered = comm.gather(totals)
    if comm.is_main_process():
        mean = {name: sum(x[name] for x in gathered) / len(gathered) for name in totals}
        gradients = {name: p.grad for name, p in model.named_parameters()}
        torch.save((mean, gradients), args.path)


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    """One of the images has no objects, and the shares have different numbers of them."""
    results = []
    for processes in (1, 2):
        path = str(tmp_path / f"{processes}.pth")
        args = argparse.Namespace(
            num_gpus=processes, num_machines=1, machine_rank=0, dist_url="auto", path=path
        )
        running = warm.start(launch, save_losses_and_gradients, args)
        assert running.communicate() and running.returncode == 0
        results.append(torch.load(path, weights_only=True))
    (losses, gradients), (losses_of_two, gradients_of_two) = results
    for name, value in losses.items():
        assert losses_of_two[name] == pytest.approx(value, rel=1e-5), name
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_two[name], gradient, atol=1e-5, rtol=1e-3)


def test_two_processes_train_and_resume_from_the_command_line(tmp_path):
    opts = ["SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 1]
    arguments = tiny_run(tmp_path, *opts)
    two = ["--num-gpus", 2, "--dist-url", "auto"]
    done = train_net(*two, *arguments)
    assert "on cpu in 2 processes" in done.stdout and "box AP:" in done.stdout
    more = [*arguments, "SOLVER.MAX_ITER", 4]
    train_net(*two, "--resume", *more)
    assert max(losses_of(tmp_path / "out")) == 3


def test_train_evaluate_resume_and_predict_from_the_command_line(tmp_path):
    arguments = tiny_run(tmp_path)
    done = train_net(*arguments, "TEST.EVAL_PERIOD", 6)
    out = tmp_path / "out"
    for name in ("metrics.json", "curves.png", "predictions.png", "model_final.pth", "config.yaml"):
        assert (out / name).stat().st_size > 0
    assert re.search(
        r"epoch \S+  iter 6/6  eta .* lr .* data_time .* match_time .* memory", done.stdout
    )
    commands = dict(re.findall(r"^  (evaluate|continue|predict): \S+ (.*)$", done.stdout, re.M))
    evaluation = train_net(*commands["evaluate"].removeprefix("train_net.py ").split())
    assert "box AP:" in evaluation.stdout
    words = commands["predict"].replace("--threshold 0.5", "").split()
    assert words[:2] == ["-m", "groupdetr_d2"]
    predicted = run_warm([*words[2:], "--verbose", "--threshold", "0"])
    assert predicted.returncode == 0 and "val_0.png: 10 objects" in predicted.stdout
    assert (out / "seen" / "val_0.png").is_file()
    wrong = train_net(*arguments, "--resume", check=False)
    assert wrong.returncode == 1 and "come before KEY VALUE pairs" in wrong.stderr
    train_net("--resume", *arguments, "SOLVER.MAX_ITER", 8)
    last = torch.load(out / "model_final.pth", weights_only=True)
    assert last["iteration"] == 7


def test_a_user_error_is_one_line_and_not_a_traceback(tmp_path):
    arguments = tiny_run(tmp_path)
    (tmp_path / "train.json").unlink()
    done = train_net(*arguments, check=False, interpreter=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "train.json does not exist" in done.stderr


def test_a_user_error_in_several_processes_is_one_too(tmp_path):
    arguments = tiny_run(tmp_path, "DATALOADER.NUM_WORKERS", 1)
    for path in (tmp_path / "images").glob("train_*.png"):
        path.write_bytes(b"no picture")
    done = train_net("--num-gpus", 2, "--dist-url", "auto", *arguments, check=False)
    assert done.returncode == 1 and "cannot be used" in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines and all(line.startswith("error: image ") for line in lines)


def test_resuming_with_another_k_is_refused(tmp_path):
    """The optimizer's averages have the old shapes, which PyTorch does not notice."""
    run_in_process(tiny_run(tmp_path), iterations=2)
    with pytest.raises(CheckpointError, match="NUM_GROUPS.*MODEL.WEIGHTS"):
        run_in_process([*tiny_run(tmp_path), "MODEL.DETR.NUM_GROUPS", 3], resume=True)


def test_unknown_keys_name_the_nearest_known_one():
    with pytest.raises(
        ConfigError, match="MODEL.DETR.NUM_GROUP .*nearest is MODEL.DETR.NUM_GROUPS"
    ):
        build_config(opts=["MODEL.DETR.NUM_GROUP", 3])
    with pytest.raises(ConfigError, match="nowhere.yaml does not exist"):
        build_config("nowhere.yaml")


@pytest.mark.parametrize(
    "key, value", [("SOLVER.AMP.DTYPE", "float8"), ("DATASETS.TRAIN", ("coco_2017_trian",))]
)
def test_impossible_values_are_named_with_a_remedy(key, value):
    config = "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml"
    with pytest.raises(ValueError, match="float8.*bfloat16|trian.*coco_2017_train"):
        settled(small_config(config, 1, key, value))
        load_training_set(small_config(config, 1, key, value))


def test_backbone_learns_at_a_tenth_of_the_rate_and_all_is_decayed():
    cfg = build_config(str(ROOT / "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    rest, backbone = build_optimizer(cfg, model).param_groups
    assert (rest["lr"], backbone["lr"]) == (1e-4, pytest.approx(1e-5))
    assert rest["weight_decay"] == backbone["weight_decay"] == 1e-4
    counts = [sum(p.numel() for p in group["params"]) for group in (rest, backbone)]
    # the official model's numbers of trained parameters, less 11 unused class columns
    assert counts == [19_963_489 - 2_827, 23_232_512]


def test_named_parameters_learn_slowly_and_unknown_names_are_errors():
    """Deformable DETR's offsets and reference points."""
    config = "configs/Deformable-DETR/deformable_detr_R_50_50ep.yaml"
    model = small_model(config=config)
    rest, slow = build_optimizer(small_config(config), model).param_groups
    assert slow["lr"] == pytest.approx(0.1 * rest["lr"])
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in slow["params"] if not names[id(p)].startswith("backbone.")}
    offsets = {name for name in names.values() if "sampling_offsets" in name}
    assert found == offsets | {f"head.queries.reference_head.{x}" for x in ("weight", "bias")}
    cfg = small_config(config, 1, "SOLVER.SLOW_NAMES", ["sampling_offset", "reference_point"])
    with pytest.raises(ValueError, match="SLOW_NAMES has 'reference_point'"):
        build_optimizer(cfg, model)


def make_step(model, **changes):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    arguments = {"clip_norm": 0.1, "amp_dtype": None, "seed": 0} | changes
    step = TrainStep(model, [make_batch()] * 3, optimizer, **arguments)
    step.iter = 0
    return step


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_a_step_clips_the_norm_of_all_gradients_together(amp_dtype, monkeypatch):
    monkeypatch.setattr(TrainStep, "_write_metrics", lambda *_: None)
    model = small_model(2)
    make_step(model, amp_dtype=amp_dtype).run_step()
    gradients = [p.grad.norm() for p in model.parameters()]
    assert torch.stack(gradients).norm().item() == pytest.approx(0.1, rel=1e-3)


def test_non_finite_numbers_stop_the_run_and_say_where(monkeypatch):
    """A broken weight shows up in the matching costs, a broken loss in the losses."""
    model = small_model(2)
    with torch.no_grad():
        model.head.encoder.layers[0].ffn[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError) as caught:
        make_step(model, nonfinite_budget=5).run_step()  # to go on would be of no use
    text = str(caught.value)
    assert "iteration 0" in text and "image_0.jpg" in text
    assert "parameter head.encoder.layers.0.ffn.0.weight" in text and "resume" in text

    model = small_model(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    break_losses(model.criterion, monkeypatch)
    with pytest.raises(NonFiniteLossError, match="loss_bbox.* not finite"):
        make_step(model).run_step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def break_losses(criterion, monkeypatch, calls=(0,)):
    """Makes the box loss of these calls infinite."""
    original, count = criterion.forward, itertools.count()

    def forward(*arguments):
        losses = original(*arguments)
        factor = float("inf") if next(count) in calls else 1.0
        return losses | {"loss_bbox": losses["loss_bbox"] * factor}

    monkeypatch.setattr(criterion, "forward", forward)


def test_a_bad_iteration_is_left_out_within_the_budget(monkeypatch, package_log):
    """The weights and the optimizer's averages stay; the good ones count as if it had not been."""
    monkeypatch.setattr(TrainStep, "_write_metrics", lambda *_: None)
    models = [small_model(2), small_model(2)]
    break_losses(models[1].criterion, monkeypatch, calls=(1, 3))
    for model, iterations in zip(models, ([0, 2], [0, 1, 2]), strict=True):
        step = make_step(model, nonfinite_budget=1)
        for step.iter in iterations:
            step.run_step()
    assert "left out, 1 of at most 1" in package_log.text and "image_0.jpg" in package_log.text
    assert step.state_dict()["left_out"] == 1
    expected, found = (model.state_dict() for model in models)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    step._data_loader_iter_obj = None
    with pytest.raises(NonFiniteLossError, match="iteration 3.*ON_NONFINITE"):
        step.iter = 3
        step.run_step()


def step_with_a_bad_process(args):
    """Run by `launch` in two processes: the second one's losses are infinite at iteration 1."""
    model = small_model(2)
    patch = pytest.MonkeyPatch()
    if comm.get_rank() == 1:
        break_losses(model.criterion, patch, calls=(1,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    arguments = {"clip_norm": 0.1, "amp_dtype": None, "seed": 0, "nonfinite_budget": 1}
    step = TrainStep(wrap_for_processes(model), [make_batch()] * 3, optimizer, **arguments)
    patch.setattr(TrainStep, "_write_metrics", lambda *_: None)
    for step.iter in range(3):
        if comm.get_rank() == 0 and step.iter == 2:
            step.signals.received = 15
        step.run_step()
    told = comm.gather((step.left_out, step.stop_signal))
    if comm.is_main_process():
        torch.save(told, args.path)


def test_every_process_leaves_out_the_same_iterations_and_hears_of_signals(tmp_path):
    path = str(tmp_path / "told.pth")
    args = argparse.Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    args.path = path
    running = warm.start(launch, step_with_a_bad_process, args)
    assert running.communicate() and running.returncode == 0
    assert torch.load(path, weights_only=True) == [(1, 15), (1, 15)]
