"""The contract of an exported file: all that one has to know to use it, kept in the file itself."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..modeling.meta_arch import SetPredictor
from .onnx_export import outputs_of
from .predictor import DEFAULT_THRESHOLD

VERSION = "1"  # of the keys below


@dataclass(frozen=True)
class Contract:
    """The description of an exported model, the same in every precision.

    Attributes:
        resize: the rule by which an image becomes the input.
        padding: what the graph pads an input to; users pad nothing.
    """

    task: str
    channels: str  # RGB or BGR
    resize: dict[str, Any]
    padding: dict[str, int]
    mean: Sequence[float]
    std: Sequence[float]
    outputs: list[dict[str, Any]]
    class_names: list[str]
    threshold: float

    def metadata(self, precision: str) -> dict[str, str]:
        """Returns the entries of a file: texts, which are JSON where they have several parts."""
        if self.resize["rule"] == "exact":
            shape = [1, 3, self.resize["height"], self.resize["width"]]
        else:
            shape = ["batch", 3, "height", "width"]
        given = {"name": "images", "dtype": "float32", "shape": shape}
        parts = {
            "input": {**given, "channels": self.channels, "lowest": 0, "highest": 255},
            "resize": self.resize,
            "padding": {"outside": 0, **self.padding},
            "normalisation": {"inside": True, "mean": self.mean, "std": self.std},
            "outputs": self.outputs,
            "class_names": self.class_names,
            "score_threshold": round(self.threshold, 4),
        }
        texts = {key: json.dumps(value, ensure_ascii=False) for key, value in parts.items()}
        return {"groupdetr_d2": VERSION, "task": self.task, "precision": precision, **texts}


def build_contract(
    cfg: CfgNode,
    model: SetPredictor,
    class_names: Sequence[str],
    threshold: float | None,
    static_size: tuple[int, int] | None,
) -> Contract:
    """Collects the contract of a model.

    Args:
        threshold: of scores; None if no evaluation has found one.
        static_size: (height, width) of the only input that the file takes, None if it takes any.

    Raises:
        ExportError: models of the task are not exported.
    """
    number = min(model.detections_per_image, model.groups.num_queries * model.num_classes)
    multiple, square = model.padding
    return Contract(
        task=model.task.kind,
        channels=cfg.INPUT.FORMAT,
        resize=build_resize_rule(cfg, static_size),
        padding={"multiple": multiple, "square": square or 0},
        mean=[float(x) for x in cfg.MODEL.PIXEL_MEAN],
        std=[float(x) for x in cfg.MODEL.PIXEL_STD],
        outputs=[
            {
                "name": x.name,
                "dtype": x.dtype,
                "shape": [number if n == "k" else n for n in x.shape],
                "meaning": x.meaning,
            }
            for x in outputs_of(model).tensors
        ],
        class_names=list(class_names),
        threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
    )


def build_resize_rule(cfg: CfgNode, static_size: tuple[int, int] | None) -> dict[str, Any]:
    """Describes the resizing of evaluation and `Predictor`, or that to a fixed size."""
    if static_size is not None:
        return {"rule": "exact", "height": static_size[0], "width": static_size[1]}
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    return {"rule": "shorter side", **sizes}


def write_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Writes the entries into an ONNX file, which has nothing else of their kind afterwards."""
    import onnx  # an extra

    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
