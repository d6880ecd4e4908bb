"""Stripping of checkpoints: the primary group alone, no optimizer, the same results."""

import sys
from pathlib import Path

from .files import write_safely
from .hub_weights import local_file
from .restoring import restore


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
    opts = ["MODEL.DETR.NUM_GROUPS", 1, "MODEL.EMA.ENABLED", False, "MODEL.WEIGHTS", ""]
    restored = restore(path, [*opts, "MODEL.DEVICE", "cpu"])
    run = {"config": restored.cfg.dump(), "classes": restored.classes}
    if restored.threshold is not None:
        run["threshold"] = restored.threshold
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_safely(out, {"model": restored.model.state_dict(), "run": run})
