"""The metrics.json of a training, which Detectron2 writes one record per line."""

import json
from pathlib import Path


def read_metrics(folder: Path) -> list[dict]:
    """Reads the records of a run's metrics.json; later attempts replace earlier ones.

    Half a line, which a killed training leaves, and what is no record of numbers is passed over.
    """
    by_iteration: dict[int, dict] = {}
    path = folder / "metrics.json"
    text = path.read_text(errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        iteration = record.get("iteration") if isinstance(record, dict) else None
        if isinstance(iteration, int) and not isinstance(iteration, bool):
            numbers = {k: x for k, x in record.items() if isinstance(x, (int, float))}
            by_iteration.setdefault(iteration, {}).update(numbers)
    return [by_iteration[i] for i in sorted(by_iteration)]
