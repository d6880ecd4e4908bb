"""Small modules in the place of `wandb` and `mlflow`, which keep what they are told.

Their functions have the names and arguments of the real ones, to which test_loggers.py compares
them where those are installed.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace


class Image:
    def __init__(self, data_or_path):
        self.shape = data_or_path.shape


class Settings:
    def __init__(self, console="auto"):
        self.console = console


class WandbRun:
    def __init__(self, folder, named):
        self.id, self.url, self.dir = named["id"] or "new-id", None, str(folder)
        self.named, self.records, self.summary = named, [], {}
        self.metrics, self.saved, self.exit_code = {}, [], None

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, data):
        self.records.append(data)

    def save(self, glob_str, base_path=None, policy="live"):
        self.saved.append(glob_str)

    def finish(self, exit_code=None):
        self.exit_code = exit_code


class Client:
    """One store of runs, as a server has it."""

    def __init__(self):
        self.runs, self.experiments = {}, {}

    def get_experiment_by_name(self, name):
        known = self.experiments.get(name)
        return SimpleNamespace(experiment_id=known) if known else None

    def create_experiment(self, name):
        return self.experiments.setdefault(name, str(len(self.experiments) + 1))

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        run = SimpleNamespace(
            info=SimpleNamespace(run_id=f"run{len(self.runs)}", lifecycle_stage="active"),
            data=SimpleNamespace(params={}, tags=dict(tags or {})),
            **{"name": run_name, "experiment": experiment_id, "status": "RUNNING"},
            **{"metrics": [], "images": [], "texts": {}, "artifacts": []},
        )
        return self.runs.setdefault(run.info.run_id, run)

    def get_run(self, run_id):
        if run_id not in self.runs:
            raise RuntimeError(f"Run with id={run_id} not found")
        return self.runs[run_id]

    def update_run(self, run_id, status=None):
        self.runs[run_id].status = status

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        assert max(len(metrics), len(params), len(tags)) <= 100
        data = self.runs[run_id].data
        assert not {p.key for p in params} & set(data.params), "parameters cannot change"
        data.params.update({p.key: p.value for p in params})
        data.tags.update({t.key: t.value for t in tags})
        self.runs[run_id].metrics += [(m.key, m.value, m.step) for m in metrics]

    def log_image(self, run_id, image, key=None, step=None, synchronous=None):
        self.runs[run_id].images.append((key, step, image.shape, str(image.dtype)))

    def log_text(self, run_id, text, artifact_file):
        self.runs[run_id].texts[artifact_file] = text

    def log_dict(self, run_id, dictionary, artifact_file):
        self.runs[run_id].texts[artifact_file] = dictionary

    def log_artifact(self, run_id, local_path):
        self.runs[run_id].artifacts.append(local_path)

    def set_terminated(self, run_id, status=None):
        self.runs[run_id].status = status


def module(name, **content):
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None, origin=__file__)
    vars(made).update(content)
    return made


def install(monkeypatch, folder):
    """Puts both in the place of the real ones; returns the runs of W&B, and MLflow's client."""
    runs, client = [], Client()

    def init(
        *, project, name, dir, config, id, resume, allow_val_change, settings
    ):  # the names are W&B's
        named = {**locals()}
        runs.append(WandbRun(folder, named))
        return runs[-1]

    folder.mkdir()
    wandb = module("wandb", init=init, Image=Image, Settings=Settings)
    value = {name: (lambda *x, n=names: SimpleNamespace(**dict(zip(n, x, strict=True))))
             for name, names in ENTITIES.items()}  # fmt: skip
    mlflow = module("mlflow", MlflowClient=lambda: client, get_tracking_uri=lambda: "the store")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", module("mlflow.entities", **value))
    for variable in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    return runs, client, init


ENTITIES = {
    "Metric": ("key", "value", "timestamp", "step"),
    "Param": ("key", "value"),
    "RunTag": ("key", "value"),
}
