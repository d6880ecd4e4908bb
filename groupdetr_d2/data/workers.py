"""The processes that load data: signals, shared memory, skipped images, and their errors."""

import logging
import multiprocessing
import os
import re
import shutil
import signal
import threading
import traceback

import numpy as np

from .image_file import ImageReadError

logger = logging.getLogger(__name__)
SHARED_MEMORY = "/dev/shm"
LOST = (ConnectionError, EOFError, FileNotFoundError)  # of a pipe whose other end has died
PREFETCHED = 2  # batches that every worker has ready, PyTorch's default
REMEDY = (
    "give the container more (docker run --shm-size=8g, or --ipc=host), or set "
    "DATALOADER.NUM_WORKERS to less, 0 for none"
)


def leave_signals_to_parent(worker: int) -> None:
    """Keeps a worker alive while its process finishes an iteration.

    Schedulers and terminals signal every process of a job. Only the parent's own SIGTERM counts.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    process = multiprocessing.parent_process()
    parent = (process and process.pid) or os.getppid()
    threading.Thread(target=_exit_when_told, args=(parent,), daemon=True).start()


def _exit_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def explain_worker_error(error: BaseException) -> str | None:
    """Explains the death of a worker to a user; None for any other error."""
    text = str(error)
    if isinstance(error, LOST) and _is_of_loading(error):
        text = f"DataLoader worker (pid ?) is gone: {type(error).__name__} {text}"
    found = re.search(r"DataLoader worker \(pid\S* ([\d?][\d, ]*)\)(.*)", text, re.S)
    is_memory = any(x in text for x in ("shm", "shared memory", "</torch_", "ancillary data"))
    if not found and not (is_memory and isinstance(error, (RuntimeError, OSError))):
        return None
    who = f"data-loading worker {found[1]}" if found else "a data-loading worker"
    how = " ".join(found[2].split())[:150] if found else text[:150]
    return (
        f"{who} of process {os.environ.get('RANK', os.getpid())} died ({how}). Killed means that "
        f"memory ran out; Bus error that {SHARED_MEMORY} is full: {_free_text()}. To mend it, "
        f"{REMEDY}. The last checkpoint is untouched: --resume goes on"
    )


def _is_of_loading(error: BaseException) -> bool:
    """Whether an error comes from the pipe between a worker and this process."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("torch/utils/data" in frame.filename for frame in frames)


def check_shared_memory(cfg, processes: int) -> None:
    """Warns if batches on their way from the workers may not fit into shared memory.

    Args:
        processes: of the training on this machine.
    """
    free = free_shared_memory()
    workers = cfg.DATALOADER.NUM_WORKERS
    if not workers or free is None:
        return
    pixels = np.max(cfg.INPUT.MIN_SIZE_TRAIN) * cfg.INPUT.MAX_SIZE_TRAIN * 3
    needed = cfg.SOLVER.IMS_PER_BATCH * pixels * workers * (PREFETCHED + 1)  # of all processes
    if needed > free:
        logger.warning(
            "%d workers in each of %d processes may need %d MB of shared memory, and %s: %s",
            workers,
            processes,
            needed / 2**20,
            _free_text(),
            REMEDY,
        )


def free_shared_memory() -> int | None:
    """The free bytes of shared memory; None where the system has no such folder."""
    return shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else None


def _free_text() -> str:
    free = free_shared_memory()
    return "its size is unknown" if free is None else f"{free / 2**20:.0f} MB of it are free"


class SkippedImages:
    """The images of a process that could not be used, with what was wrong.

    Args:
        limit: how many different ones there may be.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.reasons: set[str] = set()

    def add(self, batch: list[dict]) -> None:
        """Counts the images that the items of a batch name as skipped.

        Raises:
            ImageReadError: there are more than the limit.
        """
        for reason in (reason for item in batch for reason in item.get("skipped", ())):
            if reason in self.reasons:
                continue
            self.reasons.add(reason)
            logger.warning("left out, number %d: %s", len(self.reasons), reason)
        if len(self.reasons) > self.limit:
            raise ImageReadError(
                f"{len(self.reasons)} training images cannot be used, more than "
                f"DATALOADER.MAX_SKIPPED ({self.limit}): `python -m groupdetr_d2 check-data` lists "
                "them all"
            )
