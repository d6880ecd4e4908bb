"""The tables of nuScenes v1.0: JSON files of records, of which the needed fields alone are read.

A table is mapped into memory and its records are made one after the other, so that the largest
(2.6 million records, 1.2 GB) need not be held as a whole.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec
from tqdm import tqdm

from ...errors import UserError

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]  # w first
Refuse = Callable[[str], None]  # takes what is wrong with a record, which is then left out


class NuScenesError(UserError):
    """A copy of nuScenes cannot be used as it is; the message names file, record and remedy."""


class Record(msgspec.Struct, gc=False):
    """A record of a table; `TABLE` is the name of its file."""

    TABLE: ClassVar[str] = ""
    token: str


class Category(Record):
    """A kind of object, such as vehicle.car."""

    TABLE: ClassVar[str] = "category"
    name: str


class Instance(Record):
    """An object, which annotations show at several times."""

    TABLE: ClassVar[str] = "instance"
    category_token: str


class Sensor(Record):
    """A camera, lidar or radar of the vehicles; its channel is a name such as CAM_FRONT."""

    TABLE: ClassVar[str] = "sensor"
    channel: str


class CalibratedSensor(Record):
    """A sensor on one vehicle: its place in the vehicle's frame, and its intrinsic matrix."""

    TABLE: ClassVar[str] = "calibrated_sensor"
    sensor_token: str
    translation: Vector
    rotation: Quaternion
    camera_intrinsic: list[Vector]


class EgoPose(Record):
    """The place of a vehicle in the global frame at one time."""

    TABLE: ClassVar[str] = "ego_pose"
    translation: Vector
    rotation: Quaternion


class Scene(Record):
    """A drive of twenty seconds."""

    TABLE: ClassVar[str] = "scene"
    name: str


class Sample(Record):
    """A keyframe; its time is in microseconds."""

    TABLE: ClassVar[str] = "sample"
    timestamp: int
    scene_token: str
    prev: str
    next: str


class SampleData(Record):
    """A file of a sensor; one that is no keyframe belongs to the keyframe that follows."""

    TABLE: ClassVar[str] = "sample_data"
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    timestamp: int
    is_key_frame: bool
    filename: str
    width: int
    height: int


class SampleAnnotation(Record):
    """A box in the global frame at a keyframe; its size is width, length, height in metres."""

    TABLE: ClassVar[str] = "sample_annotation"
    sample_token: str
    instance_token: str
    translation: Vector
    size: Vector
    rotation: Quaternion
    num_lidar_pts: int
    num_radar_pts: int
    prev: str
    next: str


NEEDED = (Category, Instance, Sensor, CalibratedSensor, EgoPose, Scene, Sample, SampleData)
KINDS: tuple[type[Record], ...] = (*NEEDED, SampleAnnotation)
Kind = TypeVar("Kind", bound=Record)


class Tables:
    """The tables of a version, such as v1.0-trainval, in a copy of nuScenes.

    Args:
        root: the folder that holds samples/, sweeps/ and the folder of the version.
        progress: whether a progress bar is shown while a table is read.

    Raises:
        NuScenesError: the folder of the version does not exist.
    """

    def __init__(self, root: str | Path, version: str, *, progress: bool = False):
        self.root, self.version, self.progress = Path(root), version, progress
        self.folder = self.root / version
        if not self.folder.is_dir():
            found = sorted(p.parent.name for p in self.root.glob("*/sample_data.json"))
            raise NuScenesError(
                f"{self.folder} does not exist: the folder of nuScenes holds samples/, sweeps/ and "
                f"the tables of a version, and {self.root} has {', '.join(found) or 'no tables'}"
            )

    def path(self, table: str) -> Path:
        """Returns the path of a table's file."""
        return self.folder / f"{table}.json"

    def state(self) -> dict[str, list[int]]:
        """Returns the size of each table and when it was changed, by file name.

        Raises:
            NuScenesError: a table is missing.
        """
        found = {}
        for path in (*(self.path(kind.TABLE) for kind in KINDS), self.folder / "splits.json"):
            if path.is_file():
                state = path.stat()
                found[path.name] = [state.st_size, state.st_mtime_ns]
            elif path.name != "splits.json":
                raise NuScenesError(_missing(path))
        return found

    def read(self, kind: type[Kind], refuse: Refuse | None = None) -> Iterator[Kind]:
        """Yields the records of a table in their order.

        Args:
            refuse: takes what is wrong with a record; without it the first such is an error.

        Raises:
            NuScenesError: the table is missing or no JSON, or a record lacks a field or has one of
                a wrong type.
        """
        path = self.path(kind.TABLE)
        decoder = msgspec.json.Decoder(kind)
        records = records_of(path)
        for i, raw in enumerate(tqdm(records, kind.TABLE, disable=not self.progress, leave=False)):
            try:
                record = decoder.decode(raw)
            except msgspec.MsgspecError as error:
                problem = f"record {i + 1} (token {_token_of(raw)}): {error}"
                if refuse is None:
                    raise NuScenesError(f"{path}, {problem}. {UNPACK}") from error
                refuse(problem)
            else:
                yield record


UNPACK = "Unpack the archive of the tables again (its name ends in _meta.tgz)"


def records_of(path: Path) -> list[msgspec.Raw]:
    """Returns the records of a table as text.

    Raises:
        NuScenesError: the file is missing, cannot be read, or is no list in JSON.
    """
    if not path.is_file():
        raise NuScenesError(_missing(path))
    try:
        with path.open("rb") as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise NuScenesError(f"{path} cannot be read ({error}). {UNPACK}") from error
    try:
        return msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NuScenesError(f"{path} is no list of records in JSON ({error}). {UNPACK}") from error


def _missing(path: Path) -> str:
    return f"the table {path.stem} is missing: {path} does not exist. {UNPACK}"


def _token_of(raw: msgspec.Raw) -> str:
    try:
        record = msgspec.json.decode(raw)
    except msgspec.MsgspecError:
        return "unreadable"
    return str(record.get("token", "missing")) if isinstance(record, dict) else "missing"


class Tokens:
    """The places of a table's records by their tokens.

    Raises:
        NuScenesError: two records have one token.
    """

    def __init__(self, path: Path, tokens: Iterable[str]):
        self.path = path
        self.rows: dict[str, int] = {}
        for row, token in enumerate(tokens):
            if self.rows.setdefault(token, row) != row:
                raise NuScenesError(f"{path} has two records with the token {token}. {UNPACK}")

    def row(self, token: str, table: str, owner: str) -> int:
        """Returns the place of a token that a record `owner` of another table names.

        Raises:
            NuScenesError: no record has it.
        """
        row = self.rows.get(token)
        if row is None:
            raise NuScenesError(
                f"{self.path} has no record with the token {token!r}, which the record {owner} of "
                f"the table {table} names. {UNPACK}"
            )
        return row
