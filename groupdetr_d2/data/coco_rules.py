"""The rules of COCO annotation files, and reading and writing them.

`check-data` lists all findings, training refuses a set by the first error.
"""

import functools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .checks import DatasetError

# what training or COCO's evaluation reads
REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}
SHOWN = 5  # examples of a finding


@dataclass
class Finding:
    """Something that is wrong, in one place or in many.

    Attributes:
        text: the finding, ahead of its examples in a list.
        refusal: the sentence by which training refuses the file; empty for warnings.
    """

    is_error: bool
    text: str
    examples: list[str]
    refusal: str = ""

    def __str__(self) -> str:
        shown = "; ".join(self.examples[:SHOWN])
        more = len(self.examples) - SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        return f"{'error' if self.is_error else 'warning'}: {self.text}: {shown}{rest}"


def read_json(json_file: str) -> dict:
    """Reads the object of a JSON file.

    Raises:
        DatasetError: the file does not exist or is something else.
    """
    if not os.path.isfile(json_file):
        raise DatasetError(f"the annotation file {json_file} does not exist")
    try:
        content = json.loads(Path(json_file).read_text())
    except ValueError as error:
        raise DatasetError(f"{json_file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{json_file} is a JSON {type(content).__name__}, not COCO's object")
    return content


def read_classes(json_file: str) -> list[str]:
    """Reads the class names in the order of their category ids, and checks the file's structure.

    Raises:
        DatasetError: naming the file, the first entry that is wrong, and the remedy.
    """
    if not os.path.isfile(json_file):
        raise DatasetError(f"the annotation file {json_file} does not exist")
    state = os.stat(json_file)
    return list(_classes_of(json_file, state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=8)  # a file of COCO's size takes seconds, and several places ask
def _classes_of(json_file: str, changed: int, size: int) -> tuple[str, ...]:
    content = read_json(json_file)
    for finding in find_errors(content):
        raise DatasetError(f"{json_file}{finding.refusal}")
    categories = {c["id"]: c["name"] for c in content["categories"]}
    return tuple(categories[i] for i in sorted(categories))


def find_errors(content: dict) -> Iterator[Finding]:
    """Yields what keeps a file from being used; rules that need one another come in order."""
    for rules in (_lists, _fields, _records):
        found = list(rules(content))
        yield from found
        if found:  # the next rules read what these ones ask for
            return


def is_complete(content: dict) -> bool:
    """Whether all lists are there, and every entry has its fields."""
    return not [*_lists(content)] and not [*_fields(content)]


def _lists(content: dict) -> Iterator[Finding]:
    for key in REQUIRED:
        if not isinstance(content.get(key), list):
            refusal = f" has no list {key!r}: it is not in COCO's format"
            yield Finding(True, "the json lacks a list", [key], refusal)


def _fields(content: dict) -> Iterator[Finding]:
    """Every entry has the fields that training or COCO's evaluation reads."""
    for key, names in REQUIRED.items():
        for name in names:
            lacking = [entry for entry in content[key] if name not in entry]
            if lacking:
                refusal = (
                    f": {len(lacking)} of {len(content[key])} {key} have no {name!r}, first "
                    f"{str(lacking[0])[:200]}. Add it (annotations: bbox [x, y, width, height], "
                    "area width x height, iscrowd 0)"
                )
                examples = [str(x)[:80] for x in lacking]
                yield Finding(True, f"{key} without {name!r}", examples, refusal)


def _records(content: dict) -> Iterator[Finding]:
    """Ids are unique, and name something that exists."""
    for key in REQUIRED:
        repeated = _repeated(x["id"] for x in content[key])
        if repeated:
            refusal = f": some {key} share an id; every id must be unique"
            yield Finding(True, f"{key} share an id", repeated, refusal)
    repeated = _repeated(x["file_name"] for x in content["images"])
    if repeated:
        refusal = f": {repeated[0]} is listed more than once; list every image once"
        yield Finding(True, "images listed more than once", repeated, refusal)
    if not content["categories"] or not content["images"]:
        refusal = " has no categories or no images"
        yield Finding(True, "lists that are empty", ["categories or images"], refusal)
    yield from _unknown(content, "image", "images", "image_id", "image")
    yield from _unknown(content, "class", "categories", "category_id", "category")


def _unknown(content: dict, what: str, key: str, field: str, name: str) -> Iterator[Finding]:
    """Annotations name images and categories that are in the file."""
    known = {x["id"] for x in content[key]}
    wrong = [a for a in content["annotations"] if a[field] not in known]
    if wrong:
        refusal = (
            f": {len(wrong)} annotations name an unknown {name}, the first is annotation "
            f"{wrong[0]['id']} with {field} {wrong[0][field]!r}. Known {field}s: "
            f"{sorted(known)[:20]}"
        )
        examples = [f"annotation {a['id']} ({a[field]})" for a in wrong]
        yield Finding(True, f"annotations of an unknown {what}", examples, refusal)


def _repeated(values: Iterable) -> list[str]:
    return [str(value) for value, count in Counter(values).items() if count > 1]


def box_annotation(number: int, image_id: int, category_id: int, box: Sequence[float]) -> dict:
    """Makes the annotation of a box x, y, width, height in pixels."""
    identity = {"id": number, "image_id": image_id, "category_id": category_id}
    return {**identity, "bbox": list(box), "area": round(box[2] * box[3], 3), "iscrowd": 0}


def xyxy_of(annotations: Iterable[dict]) -> list[list[float]]:
    """The boxes of annotations as corners x0, y0, x1, y1; boxes of other lengths are left out."""
    boxes = (a["bbox"] for a in annotations)
    return [[b[0], b[1], b[0] + b[2], b[1] + b[3]] for b in boxes if len(b) == 4]
