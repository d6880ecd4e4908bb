"""Tables as files."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """Writes one line per row, under the keys of the first row; numbers have four decimals."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value):
    if isinstance(value, (float, np.floating)):
        return f"{value:.4f}"
    return value
