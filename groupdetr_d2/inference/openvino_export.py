"""Export to OpenVINO by its own converter, from an ONNX file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from .onnx_export import ExportError

SECTION = "groupdetr_d2"  # of the file's information about itself


def import_openvino() -> ModuleType:
    """Imports OpenVINO, an optional package.

    Raises:
        ExportError: it is missing.
    """
    try:
        import openvino
    except ImportError as error:
        raise ExportError(f"--openvino needs OpenVINO ({error}): pip install openvino") from error
    return openvino


def write_openvino(source: Path, target: Path, metadata: dict[str, str]) -> None:
    """Converts an ONNX file to an .xml with the graph, and a .bin beside it with the weights.

    Raises:
        ExportError: OpenVINO is missing or cannot convert the file.
    """
    openvino = import_openvino()
    try:
        model = openvino.convert_model(str(source))
        for key, value in metadata.items():
            model.set_rt_info(value, [SECTION, key])
        openvino.save_model(model, str(target), compress_to_fp16=False)
    except Exception as error:  # the converter raises many kinds
        raise ExportError(
            f"OpenVINO cannot convert {source}. It says: {str(error)[:2000]}"
        ) from error


def openvino_session(path: Path, names: Sequence[str]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Loads a file for the CPU; returns a function from images (B, 3, H, W) to its outputs.

    Products are computed in the precision of the file, not in bfloat16 where the CPU has that.
    """
    openvino = import_openvino()
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hint)

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = compiled({"images": images})
        return [np.array(found[name]) for name in names]

    return run
