"""The parts of `predict` that images and keyframes share: how it ends, what it says and writes."""

import argparse
import contextlib
import csv
import errno
import io
import json
import math
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ..config.choices import check_device
from ..errors import UserError
from ..tasks.task import Task
from .detections import write_whole

SHOWN_CLASSES = 20  # of a summary, the most common ones


class EndOfWork:
    """A context in which Ctrl-C, SIGTERM and a full disk end the work, and what is done is kept.

    Attributes:
        done, failed: numbers of parts that succeeded, and that could not be read or written.
        seconds: that it took, reading and writing of pictures included.
    """

    def __init__(self) -> None:
        self.done, self.failed, self.signal = 0, 0, 0
        self.error: Exception | None = None
        self.seconds = 0.0

    def __enter__(self) -> "EndOfWork":
        self._begin = time.perf_counter()
        self._previous = signal.signal(signal.SIGTERM, self._stop)
        return self

    def _stop(self, number: int, frame: object) -> None:
        self.signal = number
        raise KeyboardInterrupt

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        self.seconds = time.perf_counter() - self._begin
        signal.signal(signal.SIGTERM, self._previous)
        if isinstance(error, KeyboardInterrupt):
            self.signal = self.signal or signal.SIGINT
            say("stopped; what is done is written", sys.stderr)
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            say("error: the disk is full; what is done is written as far as it fits", sys.stderr)
        elif isinstance(error, Exception):
            self.error = error  # raised when what is done is written
        else:
            return error is None
        return True

    @contextlib.contextmanager
    def part(self, name: str | Path) -> Iterator[None]:
        """Within, an image that cannot be read or written is named, and the work goes on."""
        self.failed += 1
        try:
            yield
        except UserError as error:
            say(f"error: {error}", sys.stderr)
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EPIPE):
                raise
            say(f"error: the picture of {name} cannot be written ({error})", sys.stderr)
            return
        self.failed, self.done = self.failed - 1, self.done + 1

    @contextlib.contextmanager
    def tables(self, out: Path) -> Iterator[None]:
        """Within, the tables are written; then an error is raised that ended the work."""
        try:
            yield
        except BrokenPipeError:  # nobody reads what is said of them
            raise
        except OSError as error:
            raise UserError(f"the results cannot be written to {out} ({error})") from error
        if self.error is not None:
            raise self.error

    @property
    def exit_code(self) -> int:
        """0 if everything was done."""
        return 128 + self.signal if self.signal else int(self.failed > 0)


def say(text: str, stream: TextIO | None = None) -> None:
    """Writes a line; what the terminal's encoding lacks, such as half a letter, is escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def say_objects(name: str | Path, objects: Sequence[dict], task: Task) -> None:
    """Writes a line about what was found, and a line per object."""
    say(f"{name}: {len(objects)} objects")
    for x in objects:
        flat = task.flat_record(x)
        place = " ".join(f"{flat[name]:.1f}" for name in task.columns[2:])
        say(f"  {x['class']} {x['score']:.3f} [{place}]")


def say_summary(end: EndOfWork, what: str, results: Sequence[dict], threshold: float) -> None:
    """Writes how many inputs were seen, in what time each, and the objects of every class.

    Args:
        what: the number of inputs that were to be seen and their name, "12 files".
        results: see :func:`write_results`.
    """
    counts = Counter(x["class"] for result in results for x in result["objects"])
    number, pace = counts.total(), end.seconds / max(len(results), 1)
    say(
        f"{end.done} of {what}, {number} objects with a score of at least {threshold:.2f}, "
        f"{pace:.2g} s each"
    )
    common = counts.most_common(SHOWN_CLASSES)
    more = len(counts) - len(common)
    lines = [f"{name}: {count}" for name, count in common]
    lines += [f"{more} more classes: {number - sum(x for _, x in common)}"] if more else []
    for line in lines:
        say(f"  {line}")


def check_arguments(args: argparse.Namespace) -> None:
    """Checks threshold and output folder before the model is built.

    Raises:
        UserError: naming the argument.
    """
    if args.threshold is not None and not math.isfinite(args.threshold):
        raise UserError(f"--threshold is {args.threshold}; it can be 0 to 1")
    if args.device:
        check_device("--device", args.device)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror})") from error


def write_results(
    results: list[dict],
    out: Path,
    threshold: float,
    task: Task,
    places: Sequence[str] = ("file", "frame"),
) -> None:
    """Writes `detections.json`, and `detections.csv` with one line per object, each whole.

    Args:
        results: each with "objects", a list of records, and some of `places`.
        places: keys of what tells results apart, which are the first columns.
    """
    content = {"threshold": threshold, "results": results}
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow([*places, *task.columns])
    for result in results:
        for x in result["objects"]:
            row = {**task.flat_record(x), "score": f"{x['score']:.4f}"}
            writer.writerow([*(result.get(key, "") for key in places), *row.values()])
    write_whole(out / "detections.csv", table.getvalue().encode("utf-8", "backslashreplace"))
    write_whole(out / "detections.json", json.dumps(content, indent=1, allow_nan=False).encode())
