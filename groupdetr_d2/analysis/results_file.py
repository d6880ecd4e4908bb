"""The file that sweeps add to, and the description of the machine in its records."""

import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import torch

from ..errors import UserError

PACKAGES = ("torch", "torchvision", "numpy", "detectron2")
PROCESSORS = Path("/proc/cpuinfo")
FIELDS = ("label", "config", "opts", "seed", "AP")


def version_of(name: str) -> str:
    """Finds the version of an installed package, whatever its distribution is called."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return getattr(sys.modules.get(name), "__version__", "unknown")


def describe_machine() -> str:
    """Names the GPU, or the number of cores and their kind."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {_processor()}"


def _processor() -> str:
    """Names the processor where the system tells it, else the architecture."""
    known = PROCESSORS.read_text() if PROCESSORS.is_file() else ""
    names = re.findall(r"model name\s*:\s*(.+)", known)
    return names[0].strip() if names else platform.machine()


def load_results(path: Path) -> dict:
    """Reads a results file; returns an empty one if there is none."""
    if not path.is_file():
        return {"runs": []}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no results file: {error}") from error
    records = content.get("runs") if isinstance(content, dict) else None
    if not isinstance(records, list) or any(f not in r for r in records for f in FIELDS):
        raise UserError(
            f"{path} is no results file of a sweep: it has no list 'runs' of records with "
            f"{', '.join(FIELDS)}"
        )
    return content


def save_results(path: Path, results: dict) -> None:
    """Writes one line per run; an interrupted write leaves the file as it was."""
    lines = ",\n  ".join(json.dumps(record) for record in results["runs"])
    rest = {key: value for key, value in results.items() if key != "runs"}
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in rest.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(f'{{\n{head} "runs": [\n  {lines}\n ]\n}}\n')
    os.replace(unfinished, path)
