"""Columns of a large annotation file in a file that is mapped into memory.

Processes, data-loading workers and later runs share it. It is made anew, with a sentence in the
log, when the annotation file has changed or it is damaged.
"""

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from .coco_columns import CocoColumns
from .coco_rules import Id
from .segmentations import Segmentations

logger = logging.getLogger(__name__)
VERSION = "2"  # counts changes of what is stored
MASKS = "masks."
ARRAYS = ("sizes", "image_of", "class_of", "boxes", "areas", "crowd")
LISTS = ("image_ids", "file_names", "category_ids", "class_names", "annotation_ids")


def cache_folder() -> Path:
    """The folder of these files: $GROUPDETR_CACHE, or one of the user's cache folder."""
    chosen = os.getenv("GROUPDETR_CACHE")
    if chosen:
        return Path(chosen, "annotations")
    user = os.getenv("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(user, "groupdetr_d2", "annotations")


def cache_path(json_file: str, *, with_masks: bool = False) -> Path:
    """The file of an annotation file's columns; those with masks are kept beside those without.

    An annotation file that is reached through a link has the columns of the one behind it.
    """
    name = hashlib.sha256(os.path.realpath(json_file).encode()).hexdigest()[:24]
    return cache_folder() / f"{name}{'_masks' if with_masks else ''}.safetensors"


def cached_columns(
    json_file: str, read: Callable[[], CocoColumns], *, with_masks: bool = False
) -> CocoColumns:
    """Returns the columns of an annotation file, from the cache if it holds them.

    Args:
        read: reads the file; its columns are then kept.
        with_masks: whether the columns have masks.
    """
    path = cache_path(json_file, with_masks=with_masks)
    state = state_of(json_file)
    columns = load(path, state)
    if columns is not None:
        logger.info("%s: annotations are mapped from %s", json_file, path)
        return columns
    columns = read()
    try:
        store(path, state, columns)
    except OSError as error:
        logger.warning("%s cannot be kept (%s): the next run reads it again", path, error)
        return columns
    return load(path, state) or columns


def state_of(json_file: str) -> dict[str, str]:
    """Returns the size of a file and when it was changed."""
    found = os.stat(json_file)
    return {"version": VERSION, "size": str(found.st_size), "changed": str(found.st_mtime_ns)}


def store(path: Path, state: dict[str, str], columns: CocoColumns) -> None:
    """Writes the file under a temporary name first."""
    arrays = {name: np.ascontiguousarray(getattr(columns, name)) for name in ARRAYS}
    arrays |= {name: pack(getattr(columns, name)) for name in LISTS}
    if columns.segmentations is not None:
        masks = columns.segmentations
        own = {f"{MASKS}{f.name}": getattr(masks, f.name) for f in dataclasses.fields(masks)}
        arrays |= {name: np.ascontiguousarray(x) for name, x in own.items()}
    metadata = {**state, "checksum": checksum(arrays), "fingerprint": columns.fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save(arrays, metadata))
        os.chmod(unfinished, 0o644)  # for others who share the folder
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def load(path: Path, state: dict[str, str]) -> CocoColumns | None:
    """Maps the file; None if there is none, or the log says what is wrong with it."""
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if any(metadata.get(key) != value for key, value in state.items()):
                logger.info("%s is of an earlier annotation file: it is made anew", path)
                return None
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}
        if checksum(arrays) != metadata.get("checksum"):
            raise ValueError("its checksum is another one")
        fields: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
        fields |= {name: unpack(arrays[name]) for name in LISTS}
        if arrays["annotation_ids"].dtype != np.uint8:
            fields["annotation_ids"] = arrays["annotation_ids"]  # shared, as all of the file is
        masks = {x.removeprefix(MASKS): v for x, v in arrays.items() if x.startswith(MASKS)}
        fields["segmentations"] = Segmentations(**masks) if masks else None
        columns = CocoColumns(**fields)
    except Exception as error:  # a damaged file can raise anything
        logger.warning("%s is damaged (%s): it is made anew", path, error)
        return None
    columns.__dict__["fingerprint"] = metadata["fingerprint"]
    return columns


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """A number that tells damaged arrays."""
    value = 0
    for name in sorted(arrays):
        buffer: Any = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
        value = zlib.crc32(buffer, value)
    return str(value)


def pack(values: Sequence[Id]) -> np.ndarray:
    """Makes an array of numbers, or the bytes of a JSON list of texts."""
    if isinstance(values, np.ndarray):
        return values.astype(np.int64)
    if values and all(isinstance(x, int) for x in values):
        return np.array(values, dtype=np.int64)
    return np.frombuffer(json.dumps(list(values)).encode(), dtype=np.uint8)


def unpack(array: np.ndarray) -> Sequence:
    """Undoes what :func:`pack` has done."""
    return json.loads(array.tobytes()) if array.dtype == np.uint8 else array.tolist()
