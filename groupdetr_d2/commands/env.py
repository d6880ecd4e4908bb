"""Prints the versions of what is needed, and the command that mends what is not right."""

import argparse
import importlib
import platform
import sys
import warnings
from importlib import metadata

# module, distribution, lowest version, command that installs it
DETECTRON2 = (
    "pip install --require-hashes --no-deps --only-binary=:all: --python-version 3.10 --target "
    "$(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))') "
    "-r requirements/detectron2.txt"
)
NEEDED = [
    ("torch", "torch", "2.4"),
    ("torchvision", "torchvision", "0.19"),
    ("scipy", "scipy", "1.10"),
    ("fvcore", "fvcore", "0.1.5"),
    ("pycocotools", "pycocotools", "2.0.7"),
    ("cv2", "opencv-python-headless", "4.8"),
    ("numpy", "numpy", "1.23"),
    ("msgspec", "msgspec", "0.18"),
    ("omegaconf", "omegaconf", "2.3"),
    ("hydra", "hydra-core", "1.3"),
    ("pkg_resources", "setuptools", "60"),
    ("matplotlib", "matplotlib", "3.5"),
    ("tensorboard", "tensorboard", "2.10"),
    ("detectron2", "detectron2", "0.6"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no arguments."""


def run(args: argparse.Namespace) -> int:
    """Returns 1 if something is missing or too old."""
    sys.stdout.write(f"python {platform.python_version()} on {platform.platform()}\n")
    problems = []
    for module, distribution, lowest in NEEDED:
        version, mend = inspect_package(module, distribution, lowest)
        sys.stdout.write(f"{distribution:<24}{version}\n")
        problems += [mend] if mend else []
    sys.stdout.write(_device_line())
    for mend in problems:
        sys.stdout.write(f"to mend: {mend}\n")
    return 1 if problems else 0


def inspect_package(module: str, distribution: str, lowest: str) -> tuple[str, str]:
    """The version found (or what is wrong), and the command that mends it ("" if all is well)."""
    mend = f"pip install '{distribution}>={lowest}'"
    if module == "detectron2":
        mend = DETECTRON2
    elif module == "pkg_resources":
        mend = "pip install 'setuptools<81'"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            imported = importlib.import_module(module)
    except Exception as error:  # whatever an import can raise is the finding
        return f"cannot be imported ({type(error).__name__}: {error})", mend
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = str(getattr(imported, "__version__", "unknown version"))
    if _numbers(version) < _numbers(lowest):
        return f"{version}, too old: at least {lowest} is needed", mend
    return version, ""


def _numbers(version: str) -> list[int]:
    parts = version.split("+")[0].split(".")[:3]
    return [int("".join(c for c in part if c.isdigit()) or 0) for part in parts]


def _device_line() -> str:
    try:
        import torch
    except ImportError:
        return ""
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return f"CUDA: {torch.cuda.device_count()} x {', '.join(sorted(names))}\n"
    return f"no CUDA device: models run on the CPU, {torch.get_num_threads()} threads\n"
