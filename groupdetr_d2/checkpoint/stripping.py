"""Stripping of checkpoints: the primary group alone, no optimizer, the same results."""

import sys
from pathlib import Path

import torch

from .files import write_safely
from .hub_weights import local_file
from .restoring import read_checkpoint, restore
from .structure import config_text


def strip_file(path: str, out: str) -> None:
    """Strips a checkpoint, and says how large both files are."""
    path = str(local_file(path))
    strip(path, out)
    before, after = (Path(p).stat().st_size / 2**20 for p in (path, out))
    sys.stdout.write(f"{out}: {after:.1f} MiB instead of {before:.1f}\n")


def strip(path: str, out: str) -> None:
    """Writes a checkpoint of the primary group alone, with the running mean if there is one.

    Raises:
        CheckpointError: the file is none of this package's checkpoints.
    """
    content = read_checkpoint(path)
    before = config_text(content, path)["MODEL"]["DETR"].get("NUM_GROUPS", 1)
    opts = ["MODEL.DETR.NUM_GROUPS", 1, "MODEL.EMA.ENABLED", False, "MODEL.WEIGHTS", ""]
    restored = restore(path, [*opts, "MODEL.DEVICE", "cpu"])
    run = {"config": restored.cfg.dump(), "classes": restored.classes}
    run["stripped"] = content["run"].get("stripped", {"num_groups": before})
    if restored.threshold is not None:
        run["threshold"] = restored.threshold
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_safely(out, {"model": restored.model.state_dict(), "run": run})


def stripped_note(path: str | Path) -> str:
    """Says that a file is a stripped checkpoint, and of what; empty for any other file."""
    try:  # of a large file the tensors are not read
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # no checkpoint, or one of another kind: whoever loads it says so
        return ""
    return describe_stripping(content.get("run")) if isinstance(content, dict) else ""


def describe_stripping(run: object) -> str:
    """Describes the stripping that a checkpoint's part "run" tells of; empty for a whole one."""
    stripped = run.get("stripped") if isinstance(run, dict) else None
    if not isinstance(stripped, dict):
        return ""
    groups = stripped.get("num_groups", 1)
    return (
        f"stripped: the primary group of K = {groups} alone and no optimizer, so that no run can "
        "be resumed from it; as MODEL.WEIGHTS it starts a new one"
    )
