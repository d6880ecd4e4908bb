"""The tables of a copy of nuScenes that is inspected, whatever is wrong with them."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec

from ..coco_rules import Finding
from .building import LIDAR
from .names import CAMERAS
from .tables import (
    CalibratedSensor,
    Category,
    EgoPose,
    Instance,
    Kind,
    NuScenesError,
    Record,
    Sample,
    SampleAnnotation,
    SampleData,
    Scene,
    Sensor,
    Tables,
)

UNPACK = "Unpack the archives of nuScenes again"


class Attribute(Record):
    """A state of an object, such as vehicle.moving."""

    TABLE: ClassVar[str] = "attribute"
    name: str


class LinkedFile(SampleData):
    """A file of a sensor with those before and after it."""

    prev: str
    next: str


class FullAnnotation(SampleAnnotation):
    """A box with its attributes."""

    attribute_tokens: list[str]


# in this order, see `_needs`
READ = (
    *(Scene, Sample, Sensor, CalibratedSensor, LinkedFile, EgoPose),
    *(Category, Attribute, Instance, FullAnnotation),
)


class CopyInspection:
    """The findings on a copy of nuScenes, and its numbers.

    Args:
        sampled: images that are opened.

    Attributes:
        findings: errors first.
        numbers: plain values: scenes, keyframes, boxes by class and so on.
    """

    def __init__(self, tables: Tables, *, sampled: int = 200):
        self.tables, self.sampled = tables, sampled
        self.findings: list[Finding] = []
        self.numbers: dict = {}
        self.records: dict[str, dict[str, Record]] = {}

    @property
    def has_errors(self) -> bool:
        """Whether training on the copy would stop or go wrong."""
        return any(finding.is_error for finding in self.findings)

    def add(self, is_error: bool, text: str, examples: Iterable, remedy: str = "") -> None:
        """Records a finding, if there are examples of it."""
        found = [str(x) for x in examples]
        if found:
            self.findings.append(Finding(is_error, text, found, remedy if is_error else ""))

    def of(self, kind: type[Kind]) -> dict[str, Kind]:
        """Returns the records of a table by token; empty if it could not be read."""
        return cast(dict[str, Kind], self.records.get(kind.TABLE, {}))

    def channel_of(self, file: SampleData) -> str:
        """Returns the channel of a file, such as CAM_FRONT; empty if its sensor is unknown."""
        sensor = self.of(CalibratedSensor).get(file.calibrated_sensor_token)
        kind = self.of(Sensor).get(sensor.sensor_token) if sensor else None
        return kind.channel if kind else ""

    def category_of(self, box: SampleAnnotation) -> str:
        """Returns the category of a box, such as vehicle.car; empty if it is unknown."""
        instance = self.of(Instance).get(box.instance_token)
        category = self.of(Category).get(instance.category_token) if instance else None
        return category.name if category else ""


def read_into(found: CopyInspection, kind: type[Record]) -> None:
    """Reads a table; what is wrong with its records becomes findings.

    Files of radars, sweeps of the lidar and the poses at their times are passed over.
    """
    is_needed = _needs(found, kind)
    problems: list[str] = []
    doubles: list[str] = []
    records: dict[str, Record] = {}
    try:
        source: Iterator[Record] = found.tables.read(kind, problems.append)
        for record in _with_nan(found, kind, source, problems):
            if is_needed(record) and records.setdefault(record.token, record) is not record:
                doubles.append(record.token)
    except NuScenesError as error:
        found.add(True, "a table cannot be used", [error])
        return
    path = found.tables.path(kind.TABLE)
    found.add(True, f"{path}: records with a field that is missing or wrong", problems, UNPACK)
    found.add(True, f"{path}: tokens of two records", doubles, UNPACK)
    found.records[kind.TABLE] = records


def _with_nan(
    found: CopyInspection, kind: type[Record], source: Iterator[Record], problems: list[str]
) -> Iterator[Record]:
    """Yields a table's records; those with NaN or Infinity, which are no JSON, are named."""
    try:
        first = next(source, None)
    except NuScenesError as error:
        yield from _odd_records(found.tables.path(kind.TABLE), kind, problems, error)
        return
    if first is not None:
        yield first
        yield from source


def _odd_records(
    path: Path, kind: type[Record], problems: list[str], error: NuScenesError
) -> Iterator[Record]:
    odd: list[str] = []

    def noted(text: str) -> float:
        odd.append(text)
        return float(text)

    try:
        records = json.loads(path.read_bytes(), parse_constant=noted)
        records = [x for x in records if isinstance(x, dict)]
    except (OSError, ValueError, TypeError):
        raise error from None
    if not odd:
        raise error
    for i, record in enumerate(records):
        text = json.dumps(record)
        if "NaN" in text or "Infinity" in text:
            problems.append(f"record {i + 1} (token {record.get('token')}): NaN is no JSON")
        try:
            yield msgspec.convert(record, kind)
        except msgspec.ValidationError as wrong:
            problems.append(f"record {i + 1} (token {record.get('token')}): {wrong}")


def _needs(found: CopyInspection, kind: type[Record]) -> Callable[[Any], bool]:
    """Returns the rule by which records of the two large tables are needed."""
    if kind is LinkedFile:
        return lambda x: (
            (name := found.channel_of(x)) in ("", *CAMERAS) or (name == LIDAR and x.is_key_frame)
        )
    if kind is EgoPose:
        needed = {x.ego_pose_token for x in found.of(LinkedFile).values()}
        return lambda x: x.token in needed
    return lambda x: True
