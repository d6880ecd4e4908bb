"""The best score thresholds of a run, beside its checkpoints.

A checkpoint is written before its evaluation, which then finds the threshold. Keeping the number in
a file of its own leaves the checkpoint as it was written.
"""

import json
import logging
import os
from pathlib import Path

from .files import write_safely

logger = logging.getLogger(__name__)
FILE = "thresholds.json"  # {number of iterations done: threshold}


def store_threshold(folder: str | Path, iterations: int, threshold: float) -> None:
    """Adds the threshold that an evaluation after so many iterations found."""
    known = _read(Path(folder))
    known[str(iterations)] = threshold
    write_safely(os.path.join(folder, FILE), json.dumps(known, indent=1) + "\n")


def find_threshold(weights: str | Path, content: dict) -> float | None:
    """The threshold of a checkpoint: of its own evaluation, or of the one before; None if unknown.

    Args:
        content: the checkpoint's, with "iteration", the last one's number, and "run".
    """
    last = content.get("iteration")
    own = None if last is None else _read(Path(weights).parent).get(str(last + 1))
    return content["run"].get("threshold") if own is None else own


def _read(folder: Path) -> dict[str, float]:
    try:
        content = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s): it is left out", folder / FILE, error)
        return {}
    is_known = isinstance(content, dict) and all(isinstance(x, float) for x in content.values())
    return content if is_known else {}
