"""The index of a split: arrays of images, keyframes and boxes in one uncompressed .npz file.

The file is mapped into memory, so that processes and data-loading workers share it. Nothing in it
is a pickle. A header of JSON says what it was made of.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import mmap
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .geometry import inverse, motion, rotation_of
from .tables import NuScenesError

logger = logging.getLogger(__name__)
FORMAT = 1  # counts changes of what is stored
SMALL = 4 << 20  # bytes; smaller arrays are read at once
LOCAL_HEADER = 30  # bytes ahead of a member's name in a zip file


class Texts(Sequence):
    """Texts in UTF-8, one after the other.

    Args:
        data: the bytes of all, uint8.
        ends: the place after the last byte of each, (N,).
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Makes them of strings."""
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends.astype(np.uint32))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        start = int(self.ends[place - 1]) if place else 0
        return self.data[start : int(self.ends[place])].tobytes().decode()


@dataclasses.dataclass(frozen=True, eq=False)
class FrameIndex:
    """All that is known of a split: S scenes, M images, F keyframes and T boxes.

    Images of all cameras, those between keyframes too, are sorted by scene, camera and time. Poses
    are translation and quaternion, seven numbers; times are in microseconds. Keyframes are sorted
    by time; boxes are those of the ten classes that have a point, in the lidar frame, as in
    geometry.py, in the order of the tables.

    Attributes:
        calibration_pose: places of cameras in the vehicle's frame, (C, 7).
        calibration_matrix: intrinsic matrices (C, 3, 3).
        image_size: width and height in pixels, (M, 2).
        image_pose: places of the vehicle in the global frame, (M, 7).
        image_calibration: rows of calibrations, (M,).
        first_image: the first image of each scene and camera, (S, 6).
        key_images: the rows of a keyframe's images, in the order of names.CAMERAS, (F, 6).
        key_previous: the keyframe before, -1 at the start of a scene, (F,).
        key_lidar2ego: places of the lidar in the vehicle's frame, (F, 7).
        key_ego2global: places of the vehicle at the lidar's time, (F, 7).
        box_ends: the place after the last box of each keyframe, (F,).
        boxes: numbers x y z w l h yaw vx vy, the velocity nan where it is unknown, (T, 9).
        box_points: points of lidar and radar, (T,).
        header: version, split and fingerprint, and the state of the tables.
        path: the file it was read from, None if it is in memory alone.
    """

    scene_names: Texts
    calibration_pose: np.ndarray
    calibration_matrix: np.ndarray
    image_names: Texts
    image_size: np.ndarray
    image_time: np.ndarray
    image_pose: np.ndarray
    image_calibration: np.ndarray
    first_image: np.ndarray
    key_tokens: Texts
    key_scene: np.ndarray
    key_time: np.ndarray
    key_images: np.ndarray
    key_previous: np.ndarray
    key_lidar2ego: np.ndarray
    key_ego2global: np.ndarray
    box_ends: np.ndarray
    boxes: np.ndarray
    box_class: np.ndarray
    box_points: np.ndarray
    box_tokens: Texts
    header: dict = dataclasses.field(default_factory=dict)
    path: Path | None = None

    def __reduce__(self):
        """Other processes open the file again."""
        if self.path is not None:
            return _opened, (self.path, self.fingerprint)
        return FrameIndex, tuple(getattr(self, f.name) for f in dataclasses.fields(self))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hex digest of the arrays."""
        if "fingerprint" in self.header:
            return self.header["fingerprint"]
        digest = hashlib.sha256()
        for name, array in arrays_of(self).items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @functools.cached_property
    def box_starts(self) -> np.ndarray:
        """The place of the first box of each keyframe, (F,)."""
        return np.concatenate([[0], self.box_ends[:-1]])[: len(self.box_ends)].astype(np.int64)

    @functools.cached_property
    def ego2img(self) -> np.ndarray:
        """Projections of the calibrations from the vehicle's frame into pixels, (C, 4, 4)."""
        made = np.zeros((len(self.calibration_pose), 4, 4))
        made[:, :3, :3], made[:, 3, 3] = self.calibration_matrix, 1
        return made @ inverse(motions_of(self.calibration_pose))


def motions_of(poses: np.ndarray) -> np.ndarray:
    """Makes motions (..., 4, 4) of poses (..., 7)."""
    return motion(rotation_of(poses[..., 3:]), poses[..., :3])


def arrays_of(index: FrameIndex) -> dict[str, np.ndarray]:
    """Lists the arrays of an index by name; texts are two."""
    arrays = {}
    for field in dataclasses.fields(FrameIndex):
        value = getattr(index, field.name)
        if isinstance(value, Texts):
            arrays[f"{field.name}.data"], arrays[f"{field.name}.ends"] = value.data, value.ends
        elif isinstance(value, np.ndarray):
            arrays[field.name] = value
    return arrays


def save_index(path: Path, index: FrameIndex, **header: Any) -> FrameIndex:
    """Writes an index under a temporary name, moves it to `path`, and opens it.

    Args:
        header: plain values that are kept, such as version, split and the state of the tables.

    Raises:
        NuScenesError: the folder cannot be written to.
    """
    header = {**header, "format": FORMAT, "fingerprint": index.fingerprint}
    arrays = {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".unfinished")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays, **arrays_of(index))
            os.chmod(unfinished, 0o644)
            os.replace(unfinished, path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise NuScenesError(
            f"the index {path} cannot be written ({error}): set $GROUPDETR_CACHE to a folder that "
            "can be"
        ) from error
    return open_index(path)


def open_index(path: Path) -> FrameIndex:
    """Maps an index.

    Raises:
        NuScenesError: it is missing, damaged or of another format.
    """
    try:
        arrays = _mapped(path)
        header = json.loads(arrays.pop("header").tobytes())
        if header["format"] != FORMAT:
            raise NuScenesError(f"the index {path} is of another version of this package")
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(FrameIndex):
            if field.type is Texts:
                parts = (arrays[f"{field.name}.{part}"] for part in ("data", "ends"))
                fields[field.name] = Texts(*parts)
            elif field.type is np.ndarray:
                fields[field.name] = arrays[field.name]
        return FrameIndex(**fields, header=header, path=path)
    except NuScenesError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise NuScenesError(f"the index {path} is missing or damaged ({error})") from error


@functools.lru_cache(maxsize=8)
def _opened(path: Path, fingerprint: str) -> FrameIndex:
    """Opens an index that another process uses.

    Raises:
        NuScenesError: it was made anew since.
    """
    index = open_index(path)
    if index.fingerprint != fingerprint:
        raise NuScenesError(f"the index {path} was made anew while it was used: start again")
    return index


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of an uncompressed .npz file; small ones are read."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {}
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed")
            name_and_extra = struct.unpack_from("<HH", mapped, info.header_offset + 26)
            with archive.open(info) as member:
                np.lib.format.read_magic(member)
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
                start = info.header_offset + LOCAL_HEADER + sum(name_and_extra) + member.tell()
            if is_fortran or dtype.hasobject:
                raise ValueError(f"{info.filename} is no plain array")
            array: np.ndarray = np.ndarray(shape, dtype, buffer=mapped, offset=start)
            is_small = math.prod(shape) * dtype.itemsize < SMALL
            arrays[info.filename.removesuffix(".npy")] = array.copy() if is_small else array
        return arrays
