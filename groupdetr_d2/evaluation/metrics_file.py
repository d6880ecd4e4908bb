"""The metrics.json of a training, which Detectron2 writes one record per line."""

import json
from pathlib import Path


def read_metrics(folder: Path) -> list[dict]:
    """Reads the records of a run's metrics.json; later attempts replace earlier ones."""
    by_iteration: dict[int, dict] = {}
    path = folder / "metrics.json"
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:  # half a line: the training was killed, or is writing it
            continue
        by_iteration.setdefault(record["iteration"], {}).update(record)
    return [by_iteration[i] for i in sorted(by_iteration)]
