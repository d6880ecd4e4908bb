"""The paper's figures as commands: values by hand, then every command on a tiny training."""

import csv
import json
import math
import os
import platform
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import pytest
import torch
from detectron2.structures import Boxes, Instances

from groupdetr_d2.analysis import attention_figure, results_file, runs, stability, sweep
from groupdetr_d2.analysis.convergence import is_baseline
from groupdetr_d2.analysis.duplicates import boxes_per_object
from groupdetr_d2.analysis.query_figure import spread_of
from groupdetr_d2.analysis.step_cost import run_apart
from groupdetr_d2.analysis.trained_model import check_one_to_one
from groupdetr_d2.commands import run
from groupdetr_d2.commands.analyze import ANALYSES
from groupdetr_d2.config import ConfigError
from groupdetr_d2.errors import UserError
from groupdetr_d2.evaluation.fusion import merge_by_fusion, merge_by_nms
from groupdetr_d2.layers import attention
from tests.conftest import make_batch, small_config, small_model
from tests.engine.test_engine import run_in_process, tiny_run


def main(arguments):
    return run(["analyze", *arguments])


def detections(boxes, scores, classes):
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes)
    return instances


def test_weighted_boxes_fusion_by_hand():
    """Two sources agree on an object, one of them finds another; a class of its own stays apart."""
    first = detections([[0, 0, 10, 10], [50, 50, 60, 60]], [0.8, 0.6], [1, 1])
    second = detections([[0, 0, 10, 12], [0, 0, 10, 10]], [0.4, 0.2], [1, 2])
    fused = merge_by_fusion([first, second], limit=10)
    torch.testing.assert_close(fused.scores, torch.tensor([0.6, 0.3, 0.1]))
    assert fused.pred_classes.tolist() == [1, 1, 2]
    expected = torch.tensor([0, 0, 10, (0.8 * 10 + 0.4 * 12) / 1.2])
    torch.testing.assert_close(fused.pred_boxes.tensor[0], expected)
    assert len(merge_by_fusion([first, second], limit=2)) == 2
    assert len(merge_by_fusion([first[:0], second[:0]], limit=2)) == 0


def test_nms_keeps_the_best_of_a_class():
    first = detections([[0, 0, 10, 10]], [0.5], [1])
    second = detections([[0, 0, 10, 9.9], [0, 0, 10, 10]], [0.8, 0.3], [1, 2])
    kept = merge_by_nms([first, second], limit=10)
    torch.testing.assert_close(kept.scores, torch.tensor([0.8, 0.3]))


def test_instability_by_hand():
    """A query that loses its target and one that gets it are two changes."""
    before = [torch.tensor([-1, 0, 1]), torch.tensor([0, -1, -1])]
    after = [torch.tensor([0, -1, 1]), torch.tensor([0, -1, -1])]
    assert stability.changed_queries(before, after) == 1.0
    assert stability.changed_queries(before, before) == 0


def test_boxes_per_object_by_hand():
    truth = Instances((100, 100))
    truth.gt_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]]))
    truth.gt_classes = torch.tensor([1, 1, 2])
    image = {"instances": truth, "height": 200, "width": 100}  # the original is twice as high
    boxes = [[0, 0, 10, 20], [0, 0, 10, 19], [50, 100, 60, 120], [80, 160, 90, 180]]
    found = detections(boxes, [0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1])
    assert boxes_per_object(found, image) == [2, 1, 0]
    assert boxes_per_object(found[:0], image) == [0, 0, 0]


def test_spread_between_groups_by_hand():
    points = torch.tensor([[[0.0, 0.0]], [[0.3, 0.4]], [[0.0, 0.0]]])  # three groups, one object
    assert spread_of(points) == pytest.approx(1 / 3)
    assert spread_of(points[:1]) == 0


def test_mean_curves_at_common_iterations():
    same = [runs.Run("a", 0, {100: 10.0, 200: 20.0}), runs.Run("a", 1, {100: 14.0, 300: 1.0})]
    iterations, mean, spread = runs.mean_curve(same)
    assert iterations.tolist() == [100] and mean.tolist() == [12.0]
    assert spread[0] == pytest.approx(math.sqrt(8))
    assert runs.mean_and_spread([1.0, 3.0]) == "2.0 ± 1.4" and runs.mean_and_spread([1.0]) == "1.0"
    assert runs.split_label("K = 1=a/b") == ("K = 1", "a/b")
    assert runs.split_label("x/a/seed_0") == ("a/seed_0", "x/a/seed_0")
    assert is_baseline(same) and not is_baseline([runs.Run("b", 0, {}, num_groups=3)])


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(runs.RunsError, match="neither a training's folder nor a results file"):
        runs.read_runs(tmp_path / "gone")
    (tmp_path / "bad.json").write_text('{"runs": [{"label": "a"}]}')
    with pytest.raises(runs.RunsError, match="bad.json is no results file: KeyError"):
        runs.read_runs(tmp_path / "bad.json")
    with pytest.raises(runs.RunsError, match="has no bbox/AP"):
        runs.read_runs(tmp_path)
    record = {"label": "a", "seed": 0, "AP": {"1": 1.0}}
    (tmp_path / "good.json").write_text(json.dumps({"runs": [record]}))
    with pytest.raises(runs.RunsError, match=r"no run 'b'; its labels are \['a'\]"):
        runs.read_runs(tmp_path / "good.json", "b")


def test_a_path_with_a_sign_of_equality_is_a_path(tmp_path):
    (tmp_path / "K_=_5").mkdir()
    path = str(tmp_path / "K_=_5")
    assert runs.split_label(path)[1] == path
    assert runs.split_label(f"five={tmp_path}") == ("five", str(tmp_path))
    assert runs.split_label(f"K = 5={path}") == ("K = 5", path)


@pytest.mark.parametrize("dropout", [0.0])
def test_fused_attention_equals_attention_with_maps(dropout):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)
    attn_mask = torch.zeros(2, 1, 1, 7, dtype=torch.bool)
    attn_mask[1, ..., 4:] = True
    expected = attention.with_maps(q, k, v, attn_mask, dropout)
    torch.testing.assert_close(attention.fused(q, k, v, attn_mask, dropout), expected)
    maps = attention.attention_maps(*(x.transpose(1, 2).flatten(2) for x in (q, k)), 4, attn_mask)
    torch.testing.assert_close(maps @ v, expected)


CROSS_ATTENTIONS = [
    "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml",
    "configs/DAB-DETR/dab_detr_R_50_12ep.yaml",
    "configs/SAM-DETR/sam_detr_R_50_12ep.yaml",
    "configs/DINO/dino_4scale_R_50_12ep.yaml",
]


@pytest.mark.parametrize("config", CROSS_ATTENTIONS)
def test_where_queries_look_adds_up_to_one_inside_the_image(config):
    model = small_model(config=config).eval()
    layer = model.head.decoder.layers[-1].cross_attn
    with torch.no_grad(), attention_figure.recorded_inputs(layer) as seen:
        model.predict(make_batch((1,)), model.groups)
        looks = attention_figure.attended_by(seen["module"], *seen["inputs"])
    assert len(looks.points) == len(looks.weights) == 6
    torch.testing.assert_close(looks.weights.sum(1), torch.ones(6))
    assert looks.shape is None or looks.points[0].min() > 0 and looks.points[0].max() < 1
    assert not layer._forward_pre_hooks


def test_an_unknown_cross_attention_is_named():
    with pytest.raises(NotImplementedError, match="Linear cannot be drawn"):
        attention_figure.attended_by(torch.nn.Linear(1, 1), None, None, None, None)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training's folder with two numbered checkpoints, two groups, evaluated twice."""
    folder = tmp_path_factory.mktemp("training")
    run_in_process(tiny_run(folder, "TEST.EVAL_PERIOD", 3, "MODEL.DETR.NUM_GROUPS", 3))
    return folder


def analyze(capsys, name, out, *arguments):
    assert main([name, "--out", str(out), *map(str, arguments)]) == 0
    text = capsys.readouterr().out
    assert (out / f"{name}.txt").read_text().splitlines()[0] in text
    table = out / f"{name}.csv"
    rows = list(csv.DictReader(table.open())) if table.is_file() else []
    pictures = list(out.glob("*.png"))
    assert pictures and all(cv2.imread(str(p)) is not None for p in pictures)
    return text, rows


def test_groups_alone_and_together(training, tmp_path, capsys):
    text, rows = analyze(capsys, "groups", tmp_path, "--weights", training / "out/model_final.pth")
    assert [r["group"] for r in rows] == ["0", "1", "2", "all, NMS", "all, fused"]
    assert "AP of 3 groups alone: median" in text
    # group 0 alone is what evaluation gave
    metrics = json.loads((training / "out/metrics.json").read_text().splitlines()[-1])
    assert float(rows[0]["AP"]) == pytest.approx(metrics["bbox/AP"], abs=1e-3)


def test_stability_of_a_training(training, tmp_path, capsys):
    _, rows = analyze(capsys, "stability", tmp_path, "--run", f"three={training / 'out'}")
    assert [(r["run"], r["iteration"]) for r in rows] == [("three", "6")]
    assert float(rows[0]["instability"]) >= 0
    with pytest.raises(SystemExit, match="has 0 numbered checkpoints"):
        main(["stability", "--run", str(tmp_path), "--out", str(tmp_path)])


def test_queries_of_the_groups(training, tmp_path, capsys):
    weights = training / "out/model_final.pth"
    text, rows = analyze(capsys, "queries", tmp_path, "--weights", weights, "--num-images", 2)
    assert {r["group"] for r in rows} == {"0", "1", "2"} and "apart" in text
    assert len(rows) % 3 == 0 and all(0 <= float(r["x"]) <= 1 for r in rows)


def test_attention_of_the_best_queries(training, tmp_path, capsys):
    image = next((training / "images").glob("val*"))
    arguments = ["--weights", training / "out/model_final.pth", "--image", image, "--queries", 2]
    _, rows = analyze(capsys, "attention", tmp_path, *arguments)
    assert len(rows) == 2 and float(rows[0]["score"]) >= float(rows[1]["score"])


def test_duplicates_of_two_checkpoints(training, tmp_path, capsys):
    files = [f"{n}={training / f'out/model_{n}.pth'}" for n in ("0000002", "final")]
    arguments = ["--weights", *files, "--threshold", "0.0"]
    _, rows = analyze(capsys, "duplicates", tmp_path, *arguments)
    assert [r["model"] for r in rows] == ["0000002", "final"]
    assert all(int(r["objects"]) >= int(r["objects found"]) for r in rows)


def test_convergence_of_a_folder_and_of_a_results_file(training, tmp_path, capsys):
    record = {"label": "K = 1", "seed": 0, "AP": {"3": 1.0, "6": 2.0}, "num_groups": 1}
    other = {**record, "seed": 1, "AP": {"3": 3.0, "6": 2.0}}
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"runs": [record, other]}))
    arguments = ["--runs", results, f"K = 3={training / 'out'}"]
    _, rows = analyze(capsys, "convergence", tmp_path, *arguments)
    first = rows[0]
    assert (first["label"], first["seeds"], float(first["AP"])) == ("K = 1", "2", 2.0)
    own = [r for r in rows if r["label"] == "K = 3"]
    assert [r["iteration"] for r in own] == ["3", "6"]
    assert [float(r["epoch"]) for r in own] == [1.5, 3.0]  # 8 images, 4 a batch


def test_other_metrics_have_their_name_and_are_not_mixed(tmp_path, capsys):
    """Trainings of boxes in space have NDS."""
    record = {"label": "PETR", "seed": 0, "AP": {"3": 1.0, "6": 2.0}, "metric": "NDS"}
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"runs": [record, {**record, "seed": 1}]}))
    text, rows = analyze(capsys, "convergence", tmp_path, "--runs", results)
    assert "last NDS: PETR: 2.0" in text
    assert [float(r["NDS"]) for r in rows] == [1.0, 2.0] and "AP" not in rows[0]
    (run,) = runs.read_runs(results)[:1]
    assert "PETR: 2.0" in sweep.report([run], "", tmp_path)
    assert (tmp_path / "sweep.csv").read_text().startswith("label,seeds,NDS,")
    other = {**record, "label": "DINO", "metric": "AP"}
    results.write_text(json.dumps({"runs": [record, other]}))
    with pytest.raises(SystemExit, match="different metrics.*NDS of .PETR., AP of .DINO."):
        analyze(capsys, "convergence", tmp_path, "--runs", results)


def test_memory_and_time(tmp_path, capsys, warm_measuring):
    """Of the smallest model: a row a case."""
    config = tmp_path / "small.yaml"
    config.write_text(small_config().dump())
    size = ["--image-size", 64, 96, "--num-groups", 1, 2]
    _, rows = analyze(capsys, "memory", tmp_path, "--config-file", f"small={config}", *size)
    cases = [(r["attention"], r["K"]) for r in rows]
    assert cases == [(a, k) for a in ("attention maps", "fused") for k in ("1", "2")]
    arguments = ["--config-file", config, "--images", 3600, "--steps", 1, *size]
    _, rows = analyze(capsys, "time", tmp_path, *arguments)
    assert float(rows[0]["hours an epoch"]) == pytest.approx(float(rows[0]["step s"]) / 2, abs=1e-3)
    assert float(rows[0]["ratio"]) == 1


def test_a_sweep_runs_what_is_missing_and_resumes(tmp_path, monkeypatch, capsys):
    config = tmp_path / "small.yaml"
    config.write_text(small_config().dump())
    started, fails = [], {"3"}

    def train(job, args, end):
        started.append((job.label, job.seed))
        if job.opts[1] in fails:
            return None
        run = runs.Run(job.label, job.seed, {10: float(job.opts[1])}, seconds=0.5)
        return json.loads(json.dumps(sweep.make_record(job, run, 1)))

    monkeypatch.setattr(sweep, "train", train)
    results = tmp_path / "deep" / "results.json"
    key = ["--config-file", config, "--key", "MODEL.DETR.NUM_GROUPS", "--values", 1, 3]
    arguments = [*key, "--seeds", 0, 1, "--results", results]
    fails.add("1")
    main(["sweep", *map(str, arguments), "--minutes", "0", "--out", str(tmp_path)])
    assert "no training has finished in 0 minutes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no training of the sweep has finished"):
        main(["sweep", *map(str, arguments), "--minutes", "9", "--out", str(tmp_path)])
    fails.remove("1")
    started.clear()
    text, _ = analyze(capsys, "sweep", tmp_path, *arguments)
    assert len(started) == 4 and "not finished: NUM_GROUPS 3 (seed 0), NUM_GROUPS 3" in text
    fails.clear()
    started.clear()
    text, rows = analyze(capsys, "sweep", tmp_path, *arguments)
    assert started == [("NUM_GROUPS 3", 0), ("NUM_GROUPS 3", 1)] and "not finished" not in text
    assert [(r["label"], r["seeds"], r["AP"]) for r in rows] == [
        ("NUM_GROUPS 1", "2", "1.0000"),
        ("NUM_GROUPS 3", "2", "3.0000"),
    ]
    started.clear()
    analyze(capsys, "sweep", tmp_path, *arguments)
    assert not started and len(json.loads(results.read_text())["runs"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to run"),
        (["--key", "SEED"], "--key needs --config-file and --values"),
        (["--run", "no config"], "not of the form"),
    ],
)
def test_a_sweep_names_what_is_wrong_with_its_list(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main(["sweep", "--results", str(tmp_path / "r.json"), "--out", str(tmp_path), *arguments])


def test_a_mistake_in_a_sweep_shows_before_the_first_training(tmp_path):
    parser_args = type(
        "Args", (), {"key": None, "run": ["a: missing.yaml"], "opts": [], "seeds": [0]}
    )
    with pytest.raises(ConfigError, match="missing.yaml does not exist"):
        sweep.list_jobs(parser_args)


def make_job(config, *opts, seed=0):
    return sweep.Job("K = 1", str(config), tuple(map(str, opts)), seed)


def test_a_record_names_the_versions_and_the_machine(monkeypatch, tmp_path):
    """Detectron2's distribution may have another name; a processor need not have one."""
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: Abacus 3000\n")
    monkeypatch.setattr(results_file, "PROCESSORS", listed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert results_file.describe_machine() == f"{os.cpu_count()} cores, Abacus 3000"
    listed.unlink()
    assert results_file.describe_machine().endswith(f"cores, {platform.machine()}")
    monkeypatch.setitem(sys.modules, "abacus", SimpleNamespace(__version__="3.0"))
    assert results_file.version_of("abacus") == "3.0"
    assert results_file.version_of("slide_rule") == "unknown"
    assert results_file.version_of("torch").startswith(torch.__version__.partition("+")[0])


def test_a_training_is_the_same_on_another_machine_and_another_one_with_other_options(tmp_path):
    """Paths and devices do not count; a folder belongs to one configuration."""
    here, there = tmp_path / "here/configs/a.yaml", tmp_path / "there/configs/a.yaml"
    for path in (here, there):
        path.parent.mkdir(parents=True)
        path.write_text(small_config().dump())
    data = ("DATASETS.CUSTOM.VAL_JSON", "x.json", "MODEL.WEIGHTS")
    first = make_job(here, *data, "/a/R-50.pkl", "SOLVER.BASE_LR", 0.1)
    again = make_job(there, *data, "/b/R-50.pkl", "MODEL.DEVICE", "cuda", "SOLVER.BASE_LR", 0.1)
    assert first.identity == again.identity and first.folder(tmp_path) == again.folder(tmp_path)
    other = make_job(here, *data, "/a/R-50.pkl", "SOLVER.BASE_LR", 0.2)
    assert other.identity != first.identity
    assert other.folder(tmp_path).parent != first.folder(tmp_path).parent
    assert "=" not in str(first.folder(tmp_path).relative_to(tmp_path))
    here.write_text(small_config("configs/DAB-DETR/dab_detr_R_50_12ep.yaml").dump())
    assert first.folder(tmp_path) != again.folder(tmp_path)


def test_a_training_that_takes_too_long_is_stopped_and_left_to_be_resumed(tmp_path, monkeypatch):
    config = tmp_path / "a.yaml"
    config.write_text(small_config().dump())
    waited, popen = [], subprocess.Popen

    def start(command, **options):
        assert "--resume" in command
        process = popen([sys.executable, "-c", "import time; time.sleep(60)"], **options)
        waited.append(process)
        return process

    monkeypatch.setattr(sweep.subprocess, "Popen", start)
    args = SimpleNamespace(out=str(tmp_path), jobs=1, num_gpus=1)
    assert sweep.train(make_job(config), args, time.monotonic() + 1) is None
    assert waited[0].returncode == -15
    assert sweep.train(make_job(config), args, time.monotonic() - 1) is None and len(waited) == 1


def test_what_a_sweep_cannot_add_to_is_named_before_the_first_training(tmp_path):
    config, results = tmp_path / "a.yaml", tmp_path / "results.json"
    config.write_text(small_config().dump())
    results.write_text('{"runs": [{"K": 1}]}')
    arguments = ["--run", f"a: {config}", "--results", str(results), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="no results file of a sweep"):
        main(["sweep", *arguments])


def test_a_measuring_process_that_is_killed_is_an_error(warm_measuring):
    with pytest.raises(UserError, match="was killed, probably for want of memory"):
        run_apart(abort)


def test_a_measuring_process_that_hangs_is_killed(warm_measuring):
    with pytest.raises(UserError, match="took more than 2 s"):
        run_apart(time.sleep, 600, limit=2)


def abort():
    os._exit(9)


def test_models_whose_queries_cannot_be_followed_are_refused():
    model = small_model(config="configs/DINO/dino_4scale_R_50_12ep.yaml")
    trained = SimpleNamespace(model=model, weights="w.pth")
    with pytest.raises(UserError, match="w.pth: .*TWO_STAGE"):
        check_one_to_one(trained)


@pytest.mark.slow
def test_a_sweep_trains(tmp_path, capsys):
    """The real thing, with eight iterations."""
    arguments = tiny_run(tmp_path, "SOLVER.MAX_ITER", 8, "SOLVER.STEPS", "(7,)")
    custom = {}
    for flag, key in (
        ("--train-json", "TRAIN_JSON"),
        ("--train-images", "TRAIN_IMAGES"),
        ("--val-json", "VAL_JSON"),
        ("--val-images", "VAL_IMAGES"),
    ):
        place = arguments.index(flag)
        custom[f"DATASETS.CUSTOM.{key}"] = arguments[place + 1]
        del arguments[place : place + 2]
    config, opts = arguments[1], [*arguments[2:], *(x for pair in custom.items() for x in pair)]
    results, out = tmp_path / "results.json", tmp_path / "sweep"
    words = ["--run", f"tiny: {config}", "--jobs", "2", "--results", results, *opts]
    _, rows = analyze(capsys, "sweep", out, *words)
    record = json.loads(results.read_text())["runs"][0]
    assert rows[0]["label"] == "tiny" and list(record["AP"]) == ["8"]
    assert record["seconds_per_iteration"] > 0 and record["versions"]["torch"] != "unknown"


def test_analyses_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ANALYSES)
