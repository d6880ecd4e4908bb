"""The output folder of a run: one run at a time, and none over another."""

import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import IO

from ..checkpoint.files import is_of_a_run
from ..errors import UserError

logger = logging.getLogger(__name__)
LOCK = ".lock"
_HELD: dict[str, IO[str]] = {}  # locks of this process, by path


class RunFolderError(UserError):
    """An output folder cannot be used; the message names OUTPUT_DIR and the remedy."""


def prepare_folder(folder: str) -> None:
    """Makes the output folder, and checks that it can be written to.

    Raises:
        RunFolderError: it is a file, on a read-only file system, or there is no permission.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunFolderError(
            f"OUTPUT_DIR {folder} cannot be written to ({error.strerror or error}): choose another"
        ) from error


def take_folder(folder: str) -> None:
    """Takes the folder for this process until it ends or gives it back.

    The lock is this process's own: data-loading workers, which may outlive it, do not have it.

    Raises:
        RunFolderError: another training is writing to it, or nothing can be written.
    """
    prepare_folder(folder)
    path = os.path.realpath(os.path.join(folder, LOCK))
    if path in _HELD:
        return
    file = open(path, "a")  # closing it would give the lock back
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise RunFolderError(
            f"another training is writing to OUTPUT_DIR {folder}: wait for its end, or choose "
            "another OUTPUT_DIR"
        ) from error
    except OSError as error:  # not every file system has locks
        logger.warning("%s cannot be locked (%s): start no other run in it", folder, error)
    _HELD[path] = file


def give_folder_back(folder: str) -> None:
    """Lets other processes write to the folder."""
    file = _HELD.pop(os.path.realpath(os.path.join(folder, LOCK)), None)
    if file is not None:
        file.close()


def check_is_new(folder: str) -> None:
    """Checks that a new run does not mix with one that the folder holds.

    Raises:
        RunFolderError: there are checkpoints of a run.
    """
    found = checkpoints_in(folder)
    if found:
        raise RunFolderError(
            f"OUTPUT_DIR {folder} holds a run already ({', '.join(found[:3])}): go on with it with "
            "--resume, choose another OUTPUT_DIR, or remove the folder"
        )


def put_metrics_aside(folder: str) -> None:
    """Renames the metrics of a run that left no checkpoint, which nothing can go on from."""
    metrics = Path(folder, "metrics.json")
    if checkpoints_in(folder) or not metrics.is_file() or not metrics.stat().st_size:
        return
    names = (metrics.with_name(f"metrics.earlier{i}.json") for i in range(10**6))
    aside = next(path for path in names if not path.exists())
    os.replace(metrics, aside)
    logger.warning("%s is of a run that left no checkpoint: it is %s now", metrics, aside.name)


def checkpoints_in(folder: str) -> list[str]:
    """The names of a run's checkpoints."""
    return sorted(p.name for p in Path(folder).glob("model_*.pth") if is_of_a_run(p.stem))
