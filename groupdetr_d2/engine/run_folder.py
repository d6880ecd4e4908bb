"""The output folder of a run: one run at a time, and none over another."""

import fcntl
import logging
import os
from pathlib import Path
from typing import IO

from ..checkpoint.files import is_of_a_run
from ..errors import UserError

logger = logging.getLogger(__name__)
LOCK = ".lock"


class RunFolderError(UserError):
    """An output folder cannot be used; the message names OUTPUT_DIR and the remedy."""


def prepare_folder(folder: str) -> None:
    """Makes the output folder, and checks that it can be written to.

    Raises:
        RunFolderError: it is a file, on a read-only file system, or there is no permission.
    """
    probe = Path(folder, LOCK)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with probe.open("a"):
            pass
    except OSError as error:
        raise RunFolderError(
            f"OUTPUT_DIR {folder} cannot be written to ({error.strerror or error}): choose another"
        ) from error


def lock_folder(folder: str) -> IO[str]:
    """Takes the folder for this process until the file that is returned is closed.

    Raises:
        RunFolderError: another training is writing to it.
    """
    file = Path(folder, LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RunFolderError(
            f"another training is writing to OUTPUT_DIR {folder}: wait for its end, or choose "
            "another OUTPUT_DIR"
        ) from error
    except OSError as error:  # not every file system has locks
        logger.warning("%s cannot be locked (%s): start no other run in it", folder, error)
    return file


def check_is_new(folder: str) -> None:
    """Checks that a new run does not mix with one that the folder holds.

    The metrics of a run that left no checkpoint are put aside.

    Raises:
        RunFolderError: there are checkpoints of a run.
    """
    found = sorted(p.name for p in Path(folder).glob("model_*.pth") if is_of_a_run(p.stem))
    if found:
        raise RunFolderError(
            f"OUTPUT_DIR {folder} holds a run already ({', '.join(found[:3])}): go on with it with "
            "--resume, choose another OUTPUT_DIR, or remove the folder"
        )
    metrics = Path(folder, "metrics.json")
    if metrics.is_file() and metrics.stat().st_size:
        aside = next(
            path
            for path in (metrics.with_name(f"metrics.earlier{i}.json") for i in range(10**6))
            if not path.exists()
        )
        os.replace(metrics, aside)
        logger.warning("%s is of a run that left no checkpoint: it is %s now", metrics, aside.name)
