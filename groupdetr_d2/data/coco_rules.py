"""The description of a COCO annotation file: fields, types, ranges and relations, in one place.

`check-data` lists all findings, training refuses a set by the first error. What a box detector does
not read, such as polygons, may be anything.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SHOWN = 5  # examples of a finding
LARGEST = 2.0**24  # float32 tells pixels apart up to here
LARGEST_AREA = 1e10  # COCO's evaluation passes over objects above it
Id = int | str


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, in one place or in many.

    Attributes:
        text: the finding, ahead of its examples.
        remedy: a sentence that says how to mend it; empty for warnings.
        kind: "boxes" and "masks" can be left out (DATASETS.CUSTOM.BAD_BOXES drop), "nothing" to
            learn is no error of a set that is evaluated.
    """

    is_error: bool
    text: str
    examples: list[str] = field(default_factory=list)
    remedy: str = ""
    kind: str = ""

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'warning'}: {self.message()}"

    def message(self) -> str:
        """The finding with its first examples and its remedy."""
        more = len(self.examples) - SHOWN
        shown = "; ".join(self.examples[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        text = f"{self.text}: {shown}" if shown else self.text
        return f"{text}. {self.remedy}" if self.remedy else text


class Rule(NamedTuple):
    """The rule that a field has to keep.

    Attributes:
        convert: returns the value in its plain type, or raises ValueError, with a reason if the
            rule itself does not say it.
        wanted: the rule, in words.
    """

    convert: Callable[[Any], Any]
    wanted: str


def as_id(value: Any) -> Id:
    """A whole number or a text; 7.0, which tables make of 7, is the number."""
    if isinstance(value, str):
        return as_text(value)
    return as_whole(value)


def as_whole(value: Any) -> int:
    """A whole number, as 7 or 7.0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    if abs(value) >= 2**63:
        raise ValueError
    return int(value)


def as_text(value: Any) -> str:
    """A text that can be encoded, and is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it has a character that no encoding can write") from None
    if "\0" in value:
        raise ValueError("it has a character with the code 0")
    return value


def as_side(value: Any) -> int:
    """A number of pixels."""
    side = as_whole(value)
    if not 0 < side <= LARGEST:
        raise ValueError
    return side


def as_number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    try:
        number = float(value)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def as_box(value: Any) -> tuple[float, ...]:
    """The numbers x, y, width and height."""
    if isinstance(value, (list, tuple)) and len(value) == 5:
        raise ValueError("five numbers are a rotated box, whose angle nothing here reads")
    if isinstance(value, (list, tuple)) and len(value) > 5:
        raise ValueError("more than four numbers are a polygon")
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise ValueError
    return tuple(as_coordinate(x) for x in value)


def as_coordinate(value: Any) -> float:
    """A number; one that is not finite makes a bad box, which may be left out."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    try:
        return float(value)
    except OverflowError:
        return math.inf


def as_area(value: Any) -> float:
    """The area of an object, by which COCO's evaluation tells sizes apart."""
    area = as_number(value)
    if not 0 <= area <= LARGEST_AREA:
        raise ValueError
    return area


def as_flag(value: Any) -> bool:
    """0 or 1, or a truth value."""
    if value is True or value is False:
        return value
    number = as_whole(value)
    if number not in (0, 1):
        raise ValueError
    return bool(number)


ID = Rule(as_id, "a whole number or a text")
SIDE = Rule(as_side, "a whole number of pixels above 0")
RULES: dict[str, dict[str, Rule]] = {
    "images": {
        "id": ID,
        "file_name": Rule(as_text, "a text, the path of the image below the image folder"),
        "width": SIDE,
        "height": SIDE,
    },
    "annotations": {
        "id": ID,
        "image_id": ID,
        "category_id": ID,
        "bbox": Rule(as_box, "four numbers: x, y, width and height in pixels"),
        "area": Rule(as_area, "a number of square pixels up to 1e10; width x height will do"),
        "iscrowd": Rule(as_flag, "0, or 1 for a region of many objects"),
    },
    "categories": {"id": ID, "name": Rule(as_text, "a text, in quotes")},
}
SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


@dataclass
class Table:
    """The fields of a file that are read, as one list for every field of every kind of record."""

    columns: dict[str, dict[str, list]]

    def column(self, key: str, name: str) -> list:
        """The values of a field, such as ``column("images", "id")``."""
        return self.columns[key][name]


def read_table(content: Any) -> tuple[Table, list[Finding]]:
    """Converts the records of a file by the rules.

    Args:
        content: what the JSON holds.

    Returns:
        the table, which is complete if there are no errors, and the findings.
    """
    if not isinstance(content, dict):
        kind = type(content).__name__
        remedy = "COCO's format is an object with the lists images, annotations and categories"
        return Table({}), [Finding(True, f"the JSON is a {kind}", remedy=remedy)]
    lacking = [key for key in RULES if not isinstance(content.get(key), list)]
    if lacking:
        what = [f"{key!r}" for key in lacking]
        return Table({}), [Finding(True, "no list", what, "COCO's format has three lists")]
    columns, findings = {}, []
    for key, rules in RULES.items():
        columns[key], found = _read_records(key, content[key], rules)
        findings += found
    findings += find_unread(content["annotations"])
    return Table(columns), findings


def _read_records(
    key: str, records: list, rules: dict[str, Rule]
) -> tuple[dict[str, list], list[Finding]]:
    columns: dict[str, list] = {name: [] for name in rules}
    wrong: dict[str, list[str]] = {}
    for place, record in enumerate(records):
        if not isinstance(record, dict):
            text = f"{key} that are no objects"
            wrong.setdefault(text, []).append(f"number {place} is {shown(record)}")
            continue
        for name, rule in rules.items():
            if name not in record:
                wrong.setdefault(f"{key} without {name!r}, which is {rule.wanted}", []).append(
                    f"{where(key, record, place)}"
                )
                continue
            try:
                columns[name].append(rule.convert(record[name]))
            except ValueError as error:
                text = f"{name!r} of {key} has to be {rule.wanted}"
                reason = f" ({error})" if str(error) else ""
                example = f"{where(key, record, place)} has {shown(record[name])}{reason}"
                wrong.setdefault(text, []).append(example)
    remedy = f"Mend the {key}, or the tool that wrote them"
    return columns, [Finding(True, text, found, remedy) for text, found in wrong.items()]


def where(key: str, record: dict, place: int) -> str:
    """Names a record by its id, or by its place in the list."""
    identity = record.get("id")
    known = isinstance(identity, (int, str)) and not isinstance(identity, bool)
    name = f"{SINGULAR[key]} {shown(identity)}" if known else f"{SINGULAR[key]} number {place}"
    file_name = record.get("file_name")
    return f"{name} ({plain(file_name)})" if isinstance(file_name, str) and file_name else name


def shown(value: Any) -> str:
    """Shows a value as JSON writes it, with quotes where it is a text."""
    try:
        text = json.dumps(value)
    except (ValueError, TypeError, RecursionError):
        text = repr(type(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(text: str) -> str:
    """A text that can be written anywhere."""
    short = text if len(text) <= 100 else f"{text[:97]}..."
    return short.encode("utf-8", "replace").decode()


def find_unread(annotations: list) -> Iterator[Finding]:
    """Yields what an annotation says and nothing here reads."""
    ignored, turned = [], []
    for a in annotations:
        if not isinstance(a, dict):
            continue
        if a.get("ignore"):
            ignored.append(f"annotation {shown(a.get('id'))}")
        attributes = a.get("attributes")
        more = attributes if isinstance(attributes, dict) else {}
        angles = [x.get(key) for x in (a, more) for key in ("rotation", "angle", "theta")]
        if any(isinstance(x, (int, float)) and x % 360 for x in angles if x == x):
            turned.append(f"annotation {shown(a.get('id'))}")
    if ignored:
        yield Finding(False, "'ignore' is not read; iscrowd 1 marks a region to pass over", ignored)
    if turned:
        yield Finding(False, "boxes have an angle, which nothing here reads", turned)


def find_relations(table: Table) -> Iterator[Finding]:
    """Yields where ids are not unique or name nothing, and lists that are empty."""
    for key in RULES:
        repeated = repeated_values(table.column(key, "id"))
        if repeated:
            names = [f"id {shown(x)}" for x in repeated]
            yield Finding(True, f"{key} share an id", names, "Give each an id of its own")
        types = {type(x) for x in table.column(key, "id")}
        if len(types) > 1:
            text = f"some ids of {key} are numbers, and some are texts"
            yield Finding(True, text, remedy="Make them all numbers")
    repeated = repeated_values(table.column("images", "file_name"))
    if repeated:
        names = [plain(x) for x in repeated]
        yield Finding(True, "images listed more than once", names, "List every image once")
    for key in ("images", "categories"):
        if not table.column(key, "id"):
            yield Finding(True, f"the list {key!r} is empty", remedy="There is nothing to train on")
    yield from _unknown(table, "image_id", "images")
    yield from _unknown(table, "category_id", "categories")


def _unknown(table: Table, name: str, key: str) -> Iterator[Finding]:
    known = set(table.column(key, "id"))
    ids = table.column("annotations", "id")
    pairs = zip(ids, table.column("annotations", name), strict=True)
    wrong = [f"annotation {shown(i)} has {name} {shown(x)}" for i, x in pairs if x not in known]
    if wrong:
        some = ", ".join(shown(x) for x in sorted(known, key=order_of)[:10])
        remedy = f"The ids of the {key} are {some or 'none'}{' ...' if len(known) > 10 else ''}"
        yield Finding(True, f"annotations of an unknown {SINGULAR[key]}", wrong, remedy)


def order_of(identity: Id) -> tuple[bool, int, str]:
    """The order of ids: numbers first, then texts."""
    is_text = isinstance(identity, str)
    return is_text, 0 if isinstance(identity, str) else identity, str(identity) if is_text else ""


def repeated_values(values: Iterable[Hashable]) -> list:
    """The values that come more than once."""
    counts = Counter(values)
    return [value for value, count in counts.items() if count > 1]


def box_annotation(number: int, image_id: int, category_id: int, box: Sequence[float]) -> dict:
    """Makes the annotation of a box x, y, width, height in pixels."""
    identity = {"id": number, "image_id": image_id, "category_id": category_id}
    return {**identity, "bbox": list(box), "area": round(box[2] * box[3], 3), "iscrowd": 0}
