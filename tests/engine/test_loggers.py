"""TensorBoard, Weights & Biases and MLflow: what a training writes to them, and when it cannot."""

import importlib
import inspect
import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from groupdetr_d2.commands import build_parser
from groupdetr_d2.config import build_config
from groupdetr_d2.config.choices import ChoiceError
from groupdetr_d2.engine.interruption import Interrupted
from groupdetr_d2.engine.loggers import MissingLoggerError, build_loggers, check_installed
from groupdetr_d2.engine.loggers.run_logger import LoggerError, RunLogger
from groupdetr_d2.engine.loggers.session import logged, watched_pictures
from groupdetr_d2.engine.loggers.sink import Ending, Sink
from groupdetr_d2.engine.setup import setup_config
from groupdetr_d2.engine.trainer import Trainer
from groupdetr_d2.evaluation.detection_curves import ImageResult
from groupdetr_d2.evaluation.evaluation_report import Evaluation
from groupdetr_d2.evaluation.presentation import Presentation
from tests.engine import stand_in_loggers
from tests.engine.test_engine import run_in_process, tiny_run

ALL = "['tensorboard', 'wandb', 'mlflow']"


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    return stand_in_loggers.install(monkeypatch, tmp_path / "of_wandb")[:2]


def numbers_of(folder):
    """What metrics.json holds, by name and iteration."""
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {(k, r["iteration"]): v for r in records for k, v in r.items() if k != "iteration"}


PICTURES = [f"predictions/{i}" for i in (1, 2, 3, 4)]
EVALUATED = (1, 3)  # as Detectron2 counts: the last one follows the last iteration


def check_wandb(runs, expected, points):
    first, second = runs
    assert first.named["id"] is None and second.named["id"] == "new-id" and first.id == second.id
    assert first.named["name"] == "out" and first.named["project"] == "groupdetr_d2"
    assert first.named["config"]["MODEL"]["DETR"]["NUM_GROUPS"] == 2
    assert second.named["config"]["SOLVER"]["BASE_LR"] == 2e-4
    assert first.metrics == {"iteration": None, "*": "iteration"}
    records = [r for run in runs for r in run.records]
    written = {(k, r["iteration"]): v for r in records for k, v in r.items()}
    assert all(written[key] == expected[key] for key in points)
    assert {written[p, i].shape for p in PICTURES for i in EVALUATED} == {(233, 644, 3)}
    assert second.summary["iterations"] == 3 and {"best/AP", "final/AP50"} <= set(second.summary)
    names = {path.rpartition("/")[2] for path in second.saved}
    assert names >= {"report.html", "curves.png", "log.txt"} and second.exit_code == 0


def check_mlflow(client, folder, expected, points):
    (run,) = client.runs.values()
    assert (
        run.name == "out"
        and run.status == "FINISHED"
        and client.experiments == {"groupdetr_d2": run.experiment}
    )
    assert run.data.params["MODEL.DETR.NUM_GROUPS"] == "2"
    assert run.data.params["SOLVER.BASE_LR"] == "0.0001"
    assert run.data.tags["SOLVER.BASE_LR"] == "0.0002" and len(run.data.tags) == 2
    assert {(k, step): v for k, v, step in run.metrics}.items() >= {
        (key, expected[key]) for key in points
    }
    assert {image[:2] for image in run.images} == {(p, i) for p in PICTURES for i in EVALUATED}
    assert run.images[0][2:] == ((233, 644, 3), "uint8")
    assert (
        "BASE_LR: 0.0002" in run.texts["config.yaml"] and run.texts["results.json"]["best/AP"] >= 0
    )
    assert any(path.endswith("report.html") for path in run.artifacts)
    assert json.loads((folder / "loggers.json").read_text()) == {
        "wandb": "new-id",
        "mlflow": run.info.run_id,
    }


def check_tensorboard(folder, expected, points):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    for name, iteration in points:
        values = {event.step: event.value for event in events.Scalars(name)}
        assert values[iteration] == pytest.approx(expected[name, iteration], rel=1e-5)
    assert events.Tags()["images"] == PICTURES
    assert [event.step for event in events.Images(PICTURES[0])] == [*EVALUATED]


def test_all_loggers_get_scalars_configuration_pictures_and_results(
    tmp_path, stand_ins, monkeypatch
):
    """And a resumed training goes on in the same runs."""
    opts = ["TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 3, "LOGGERS", ALL]
    run_in_process(tiny_run(tmp_path, *opts), iterations=1)
    run_in_process(tiny_run(tmp_path, *opts, "SOLVER.BASE_LR", 2e-4), resume=True)
    runs, client = stand_ins
    expected = numbers_of(tmp_path / "out")
    points = {key for key in expected if not math.isnan(expected[key])}
    assert {name for name, _ in points} >= {"total_loss", "lr", "bbox/AP", "epoch"}
    check_wandb(runs, expected, points)
    check_mlflow(client, tmp_path / "out", expected, points)
    check_tensorboard(tmp_path / "out", expected, points)


def test_a_package_that_is_missing_is_named_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr("groupdetr_d2.engine.loggers.find_spec", lambda name: None)
    monkeypatch.setattr(Trainer, "build_train_loader", lambda *_: pytest.fail("data was read"))
    cfg = build_config(opts=["LOGGERS", ["wandb"], "OUTPUT_DIR", str(tmp_path / "out")])
    with pytest.raises(MissingLoggerError, match="LOGGERS names wandb.*pip install wandb"):
        Trainer(cfg)


def test_the_folder_that_wandb_leaves_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "mlflow").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(MissingLoggerError, match="pip install mlflow"):
        check_installed(["mlflow"])
    check_installed([])


def test_other_words_than_the_loggers_are_refused():
    with pytest.raises(ChoiceError, match="LOGGERS has 'comet'; it can have tensorboard, wandb or"):
        build_config(opts=["LOGGERS", ["wandb", "comet"]])
    with pytest.raises(Exception, match="A right one is: LOGGERS"):
        build_config(opts=["LOGGERS", "wandb"])


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    arguments = tiny_run(tmp_path, "LOGGERS", "['tensorboard']")
    args = build_parser().parse_args(["train", *map(str, arguments)])
    assert [one.name for one in Trainer(setup_config(args)).loggers] == ["tensorboard"]
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert Trainer(setup_config(args)).loggers == []


class Recording(Sink):
    """A sink whose writing fails as often as it is told to."""

    def __init__(self, failures=0, message=""):
        self.failures, self.message, self.calls = failures, message, []

    def open(self, known, start_iter):
        if self.message:
            raise RuntimeError(self.message)
        self.calls.append(("open", known, start_iter))
        return f"run after {start_iter}"

    def write(self):
        self.calls.append("write")
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no server")

    def write_pictures(self, pictures, iteration):
        self.calls.append("pictures")

    def write_results(self, numbers, files, step):
        self.calls.append(("results", numbers["iterations"], [file.name for file in files]))

    def close(self, ending):
        self.calls.append(ending)


def test_a_logger_that_fails_is_a_warning_and_in_the_end_given_up(tmp_path, package_log):
    lucky, dead = Recording(failures=2), Recording(failures=9)
    for sink in (lucky, dead):
        one = RunLogger("wandb", sink, str(tmp_path))
        one.write()  # before it is open
        one.open(0)
        for _ in range(5):
            one.write()
    assert lucky.calls.count("write") == 5 and dead.calls.count("write") == 3
    lines = [record.message for record in package_log.records]
    assert len(lines) == 5 and "no server" in lines[0] and "the training goes on" in lines[0]
    assert "the rest is not written there" in lines[-1]


def test_a_run_is_known_to_a_resumed_training_alone(tmp_path):
    for start, known in ((0, None), (3, "run after 0"), (0, None), (5, "run after 0")):
        sink = Recording()
        RunLogger("mlflow", sink, str(tmp_path)).open(start)
        assert sink.calls == [("open", known, start)]
    (tmp_path / "loggers.json").write_text("{half")
    sink = Recording()
    RunLogger("mlflow", sink, str(tmp_path)).open(7)
    assert sink.calls == [("open", None, 7)]


@pytest.mark.parametrize(
    "error, ending, files",
    [
        (None, Ending.FINISHED, ["report.html", "log.txt"]),
        (Interrupted(15), Ending.STOPPED, ["log.txt"]),
        (ValueError("no"), Ending.FAILED, ["log.txt"]),
    ],
)
def test_a_logger_learns_how_the_training_ended(tmp_path, error, ending, files):
    for name in files:
        (tmp_path / name).touch()
    trainer = SimpleNamespace(start_iter=0, iterations_done=4, last_evaluation=None)
    trainer.best = SimpleNamespace(value=-1.0)
    sink = Recording()
    try:
        with logged([RunLogger("wandb", sink, str(tmp_path))], trainer, tmp_path):
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    assert sink.calls[1:] == [("results", 4.0, files), ending]


def test_a_logger_that_cannot_begin_ends_the_run_before_training(tmp_path):
    first, second = Recording(), Recording(message="api_key\nnot configured")
    loggers = [RunLogger("mlflow", first, str(tmp_path)), RunLogger("wandb", second, str(tmp_path))]
    trainer = SimpleNamespace(start_iter=0, iterations_done=0, last_evaluation=None)
    trainer.best = SimpleNamespace(value=-1.0)
    with pytest.raises(LoggerError, match="wandb, which LOGGERS.*api_key not configured"):
        with logged(loggers, trainer, tmp_path):
            pytest.fail("trained")
    assert first.calls[-1] is Ending.FAILED


def logger_of(name, folder, **keys):
    opts = [x for pair in keys.items() for x in pair]
    cfg = build_config(opts=["LOGGERS", [name], "OUTPUT_DIR", str(folder), *opts])
    (one,) = build_loggers(cfg)
    return one


def test_mlflow_names_a_run_that_its_store_does_not_have(tmp_path, stand_ins):
    (tmp_path / "loggers.json").write_text('{"mlflow": "gone"}')
    with pytest.raises(LoggerError, match="run gone.*the store.*not found.*MLFLOW_TRACKING_URI"):
        logger_of("mlflow", tmp_path).open(3)


def test_mlflow_gets_names_of_classes_that_it_takes(tmp_path, stand_ins):
    one = logger_of("mlflow", tmp_path)
    one.open(0)
    with EventStorage(0) as storage:
        storage.put_scalar("bbox/AP-猫 (大)", 1.5, smoothing_hint=False)
        one.write()
    assert stand_ins[1].runs["run0"].metrics == [("bbox/AP-猫 _大_", 1.5, 0)]


def test_watched_pictures_are_the_same_images_every_time():
    """Truth and the detections above the threshold, of images with objects where there are any."""

    def result(number, num_objects):
        scores = np.array([0.9, 0.2])
        classes, pairs = np.zeros(num_objects, int), np.zeros((2, num_objects))
        name, crowd = f"folder/{number}.jpg", np.zeros(num_objects, bool)
        one = ImageResult(name, classes, crowd, np.zeros(2, int), scores, pairs)
        one.truth = lambda: Instances((8, 8), number=[number] * num_objects)
        one.found = lambda: Instances((8, 8), number=np.array([number, number]))
        one.picture = lambda: np.full((8, 8, 3), (1, 2, 3), np.uint8)
        return one

    drawn = []

    def draw(picture, instances, names):
        drawn.append(len(instances) if len(instances) else 0)
        return picture

    shown = Presentation(draw, fit=lambda picture, side: picture)
    images = [result(i, num_objects=int(i % 2)) for i in range(21)]
    evaluation = Evaluation(images, ["cat"], [], None, threshold=0.5)
    pictures = watched_pictures(evaluation, shown)
    assert [*pictures] == [f"predictions/{i}" for i in (1, 2, 3, 4)]
    assert drawn == [1, 1] * 4  # an object, and the one detection above the threshold
    assert pictures["predictions/1"].shape == (28, 20, 3)
    assert [*pictures["predictions/1"][21, 1]] == [3, 2, 1]  # RGB
    assert len(watched_pictures(Evaluation(images[:1], ["cat"], [], None, 0.5), shown)) == 1
    assert watched_pictures(Evaluation([], ["cat"], [], None, 0.5), shown) == {}


def real(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install {name}")


def arguments_of(function):
    return set(inspect.signature(function).parameters) - {"self", "kwargs"}


def test_the_stand_in_of_wandb_has_the_arguments_of_the_real_one(tmp_path, monkeypatch):
    wandb = real("wandb")
    run, settings = wandb.Run, wandb.Settings
    image = arguments_of(wandb.Image.__init__)
    with monkeypatch.context() as patch:
        *_, init = stand_in_loggers.install(patch, tmp_path / "x")
    assert arguments_of(init) <= arguments_of(wandb.init)
    assert arguments_of(stand_in_loggers.Image) <= image and settings(console="off")
    for name in ("define_metric", "log", "save", "finish"):
        own = arguments_of(getattr(stand_in_loggers.WandbRun, name))
        assert own <= arguments_of(getattr(run, name)), name


def test_the_stand_in_of_mlflow_has_the_arguments_of_the_real_one():
    real("mlflow")
    client = importlib.import_module("mlflow").MlflowClient
    for name, function in vars(stand_in_loggers.Client).items():
        if not name.startswith("_"):
            assert arguments_of(function) <= arguments_of(getattr(client, name)), name
    entities = importlib.import_module("mlflow.entities")
    for name, order in stand_in_loggers.ENTITIES.items():
        found = [*inspect.signature(getattr(entities, name)).parameters]
        assert found[: len(order)] == [*order], name


def write_small_run(one, start):
    """A run of two iterations with a picture, a report and results."""
    (one.folder / "report.html").write_text("<p>a report</p>")
    one.open(start)
    with EventStorage(start) as storage:
        for iteration in (start, start + 1):
            storage.iter = iteration
            storage.put_scalar("bbox/AP", 10.0 + iteration, smoothing_hint=False)
            one.write()
        one.write_pictures({"predictions/1": np.full((9, 12, 3), 7, np.uint8)}, start + 1)
    numbers = {"iterations": start + 2.0, "best/AP": 11.5}
    one.finish(Ending.FINISHED, numbers, [one.folder / "report.html"], start + 2)


def test_a_real_run_of_wandb_without_a_network(tmp_path, monkeypatch, caplog):
    real("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (0, 3):
        write_small_run(logger_of("wandb", tmp_path, SEED=5), start)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    known = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    attempts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(attempts) == 2 and {path.name.rpartition("-")[2] for path in attempts} == {known}
    for attempt in attempts:
        content = (attempt / f"run-{known}.wandb").read_bytes()
        assert all(word in content for word in (b"bbox/AP", b"best/AP", b"groupdetr_d2", b"SEED"))
        assert (attempt / "files/report.html").read_text() == "<p>a report</p>"
        assert len([*attempt.glob("files/media/images/predictions/*.png")]) == 1


def test_a_real_run_of_mlflow_in_a_database(tmp_path, monkeypatch, caplog):
    real("mlflow")
    monkeypatch.chdir(tmp_path)  # where it keeps artifacts
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    for start, seed in ((0, 5), (3, 6)):
        write_small_run(logger_of("mlflow", tmp_path, SEED=seed), start)
    known = json.loads((tmp_path / "loggers.json").read_text())["mlflow"]
    client = importlib.import_module("mlflow").MlflowClient()
    experiment = client.get_experiment_by_name("groupdetr_d2")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == known and run.info.status == "FINISHED"
    assert run.data.params["SEED"] == "5" and run.data.tags["SEED"] == "6"
    history = client.get_metric_history(known, "bbox/AP")
    assert [(m.step, m.value) for m in history] == [(0, 10.0), (1, 11.0), (3, 13.0), (4, 14.0)]
    assert run.data.metrics["best/AP"] == 11.5
    names = {artifact.path for artifact in client.list_artifacts(known)}
    assert names == {"config.yaml", "images", "report.html", "results.json"}
    assert len(client.list_artifacts(known, "images")) == 4  # two pictures, each in two sizes
    assert not [r for r in caplog.records if r.name.startswith("groupdetr") and r.levelno > 20]
