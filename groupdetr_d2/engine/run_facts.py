"""The facts that a report gives of a run: data, duration, machine, versions and commit."""

import datetime
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..evaluation.metrics_file import read_metrics
from .memory import peak_memory_mib

ROOT = Path(__file__).parents[2]  # of a checkout
PACKAGES = ("groupdetr_d2", "detectron2", "torchvision", "numpy")
SECONDS_FOR_GIT = 10


class Stopwatch:
    """The time since a training began, or was resumed."""

    def __init__(self, first_iteration: int = 0):
        self.first_iteration, self.start = first_iteration, time.time()

    def facts(self, iterations: int) -> dict[str, str]:
        """Says when it began and how long it took.

        Args:
            iterations: done by now.
        """
        seconds = round(time.time() - self.start)
        began = datetime.datetime.fromtimestamp(self.start).astimezone()
        since = f", since it was resumed at iteration {self.first_iteration}"
        return {
            "began": began.strftime("%Y-%m-%d %H:%M %Z"),
            "duration": f"{datetime.timedelta(seconds=seconds)} until iteration {iterations}"
            f"{since if self.first_iteration else ''}",
        }


def facts_of(cfg: CfgNode, own: Mapping[str, str]) -> dict[str, str]:
    """Collects the facts of a run or of an evaluation.

    Args:
        own: facts that the caller knows, such as those of a :class:`Stopwatch`.
    """
    detr, folder = cfg.MODEL.DETR, Path(cfg.OUTPUT_DIR)
    times = [record["time"] for record in read_metrics(folder) if "time" in record]
    speed = {"median iteration": f"{np.median(times):.3f} s"} if times else {}
    return {
        "model": f"{cfg.MODEL.META_ARCHITECTURE}, {detr.VARIANT}, K = {detr.NUM_GROUPS} groups of "
        f"N = {detr.NUM_OBJECT_QUERIES} queries",
        "weights it began with": cfg.MODEL.WEIGHTS or "none",
        "training sets": ", ".join(cfg.DATASETS.TRAIN) or "none",
        "test sets": ", ".join(cfg.DATASETS.TEST) or "none",
        "batch": str(cfg.SOLVER.IMS_PER_BATCH),
        "processes": str(comm.get_world_size()),
        "seed": str(cfg.SEED),
        **own,
        **speed,
        **machine_facts(torch.device(cfg.MODEL.DEVICE)),
        "versions": versions(),
        "commit": commit_of(ROOT),
        "folder": str(folder.absolute()),
    }


def machine_facts(device: torch.device) -> dict[str, str]:
    """Names the device, and says how much memory the process has taken at most."""
    if device.type == "cuda":
        count = torch.cuda.device_count()
        name = f"{torch.cuda.get_device_name(device)}, {count} visible"
    else:
        name = f"{processor()}, threads: {torch.get_num_threads()}"
    memory = f"{peak_memory_mib(device):.0f} MiB"
    return {"hardware": f"{device.type}: {name}", "peak memory of a process": memory}


def processor() -> str:
    """Names the processor, as far as the system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> str:
    """Lists Python, PyTorch with its CUDA, and the packages that results depend on."""
    found = [f"Python {platform.python_version()}", f"PyTorch {torch.__version__}"]
    if torch.version.cuda:
        found.append(f"CUDA {torch.version.cuda}")
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join([*found, platform.platform()])


def commit_of(folder: Path) -> str:
    """Names the commit of a checkout, and whether files have changed since."""
    if not (folder / ".git").exists():
        return "unknown: the package is installed without its history"
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True,
                text=True,
                check=True,
                timeout=SECONDS_FOR_GIT,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: git says {error}"
    return f"{head}{', with changes that are not committed' if changed else ''}"
