"""Checkpoint files: written whole or not at all, and read without running code."""

import contextlib
import os
import zipfile
from pathlib import Path

import safetensors.torch
import torch

from ..config.files import config_that_fills, train_command
from ..errors import UserError
from .safe_pickle import load_pickle

GROWTH = 1.05  # of a file of torch.save, which compresses nothing, when it is unpacked


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the file and the remedy."""


class UnreadableCheckpointError(CheckpointError):
    """A file is truncated, or no checkpoint."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written; those that exist are untouched."""


def check_exists(path: str) -> None:
    """Checks that a file of MODEL.WEIGHTS is there; addresses are left to those who fetch them.

    Raises:
        CheckpointError: naming the file, and the training that would make it, if one is known.
    """
    if not path or "://" in path or os.path.exists(path):
        return
    folder, name = os.path.split(path)
    config = config_that_fills(folder) if name == "model_final.pth" else ""
    made = f": python {train_command()} --config-file {config} makes it" if config else ""
    raise CheckpointError(f"the checkpoint {path} (MODEL.WEIGHTS) does not exist{made}")


def is_of_a_run(stem: str) -> bool:
    """Whether a training gives its checkpoints such a name."""
    which = stem.removeprefix("model_")
    return which in ("final", "best") or which.isdigit()


def read_file(path: str, *, trust: bool = False):
    """Reads a pickle, a safetensors file or a file of torch.save.

    Args:
        trust: whether it may run code.

    Raises:
        UnreadableCheckpointError: naming the file and the remedy.
    """
    try:
        if path.endswith(".pkl"):
            return load_pickle(path, trust=trust)
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except UserError:
        raise
    except Exception as error:  # damaged files raise many kinds
        raise UnreadableCheckpointError(
            f"checkpoint {path} cannot be read: it is truncated, no checkpoint at all, or holds "
            "Python objects other than tensors and plain values. Copy it again, use an earlier one "
            "of the same folder, pass an official file through `python -m groupdetr_d2 convert` "
            "first, or if you trust its maker, read it with train_net.py --trust-checkpoint "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error


def check_sums(path: str) -> None:
    """Checks the checksums of a zip file, which torch.load does not."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > GROWTH * os.path.getsize(path) + 2**20:
                raise zipfile.BadZipFile(f"it would grow to {unpacked / 2**20:.0f} MiB")
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def write_safely(path: str, content: dict | str) -> None:
    """Writes a checkpoint or a text under another name, syncs it to disk, then renames it."""
    unfinished = path + ".unfinished"
    try:
        with open(unfinished, "wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system can
        _sync_folder(os.path.dirname(path) or ".")


def _sync_folder(path: str) -> None:
    """Syncs the names in a folder to disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
