"""The places beside metrics.json that a training is written to: TensorBoard, W&B, MLflow.

LOGGERS names them. A `Sink` knows one package; a `RunLogger` is what the training calls.
"""

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from detectron2.config import CfgNode

from ...errors import UserError
from .mlflow_sink import MlflowSink
from .run_logger import RunLogger
from .sink import Sink
from .tensorboard_sink import TensorboardSink
from .wandb_sink import WandbSink

SINKS: dict[str, Callable[[CfgNode], Sink]] = {
    "tensorboard": TensorboardSink,
    "wandb": WandbSink,
    "mlflow": MlflowSink,
}


class MissingLoggerError(UserError):
    """A package that LOGGERS names is not installed; the message has the command."""


def check_installed(names: Iterable[str]) -> None:
    """Checks that the packages of LOGGERS are there, before anything else is done.

    Raises:
        MissingLoggerError: naming the package and the pip command.
    """
    for name in names:
        spec = find_spec(name)
        # a folder that is called like it, such as the one that W&B makes, is no package
        if spec is None or spec.origin is None:
            raise MissingLoggerError(
                f"LOGGERS names {name}, which is not installed: pip install {name}, or leave it out"
            )


def build_loggers(cfg: CfgNode) -> list[RunLogger]:
    """Builds the loggers of LOGGERS; nothing is opened yet."""
    names = dict.fromkeys(cfg.LOGGERS)  # each once
    return [RunLogger(name, SINKS[name](cfg), cfg.OUTPUT_DIR) for name in names]
