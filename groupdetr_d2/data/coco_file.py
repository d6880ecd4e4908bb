"""Reading a COCO annotation file into columns; a file of COCO's size takes seconds."""

import codecs
import functools
import json
import mmap
import os
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .checks import DatasetError
from .coco_cache import cached_columns
from .coco_columns import CocoColumns, columns_of
from .coco_rules import (
    LARGEST,
    LARGEST_AREA,
    RULES,
    Finding,
    Table,
    as_text,
    find_relations,
    read_table,
)

CACHED_SIZE = 20 * 2**20  # bytes; smaller files are read in less than a second
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# What this parser accepts is right by coco_rules.py. Whatever it refuses is read again, slowly and
# by the rules, which accept more and say what is wrong. Other fields are passed over unread.
Identity = int | str
Side = Annotated[int, msgspec.Meta(gt=0, le=int(LARGEST))]


class _Image(msgspec.Struct, gc=False):
    id: Identity
    file_name: str
    width: Side
    height: Side


class _Annotation(msgspec.Struct, gc=False):
    id: Identity
    image_id: Identity
    category_id: Identity
    bbox: tuple[float, float, float, float]
    area: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_AREA)]
    iscrowd: Literal[0, 1]
    # not read, and named where they say something
    ignore: Any = None
    rotation: Any = None
    angle: Any = None
    theta: Any = None
    attributes: Any = None


class _Category(msgspec.Struct, gc=False):
    id: Identity
    name: str


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_columns(json_file: str) -> CocoColumns:
    """Reads an annotation file whose boxes may still be bad; a large one is kept for later runs.

    Raises:
        DatasetError: naming the file, the first thing that is wrong with it, and the remedy.
    """
    check_is_file(json_file)
    state = os.stat(json_file)
    return _read_columns(os.path.abspath(json_file), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=16)
def _read_columns(json_file: str, changed: int, size: int) -> CocoColumns:
    if size < CACHED_SIZE:
        return _read_or_raise(json_file)
    return cached_columns(json_file, functools.partial(_read_or_raise, json_file))


def _read_or_raise(json_file: str) -> CocoColumns:
    columns, findings = examine(json_file)
    error = next((finding for finding in findings if finding.is_error), None)
    if error is not None or columns is None:
        raise DatasetError(f"{json_file}: {error.message() if error else 'it cannot be read'}")
    return columns


def examine(json_file: str) -> tuple[CocoColumns | None, list[Finding]]:
    """Reads an annotation file, and finds what is wrong with its records and their relations.

    Returns:
        the columns, None if there are errors, and the findings.

    Raises:
        DatasetError: the file does not exist, or is no JSON.
    """
    check_is_file(json_file)
    table = read_fast(json_file)
    findings: list[Finding] = []
    if table is None:
        table, findings = read_table(read_json(json_file))
    if not any(finding.is_error for finding in findings):
        findings += find_relations(table)
    has_errors = any(finding.is_error for finding in findings)
    return None if has_errors else columns_of(table), findings


def read_fast(json_file: str) -> Table | None:
    """Reads a file in which everything is as it should be; None for any other."""
    try:
        with open(json_file, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                parsed = msgspec.json.decode(content, type=_File)
    except (msgspec.MsgspecError, ValueError, OSError, RecursionError):
        return None
    kinds = {key: getattr(parsed, key) for key in RULES}
    unread = attrgetter("ignore", "rotation", "angle", "theta", "attributes")
    if any(x is not None for a in parsed.annotations for x in unread(a)):
        return None
    columns = {
        key: {name: list(map(attrgetter(name), kinds[key])) for name in RULES[key]} for key in RULES
    }
    return Table(columns) if _is_plain(columns) else None


def _is_plain(columns: dict[str, dict[str, list]]) -> bool:
    """Whether texts and ids are what the rules accept, which the parser cannot tell."""
    texts = [*columns["images"]["file_name"], *columns["categories"]["name"]]
    names = ("image_id", "category_id")
    ids = [x for key in RULES for x in columns[key]["id"]]
    ids += [x for name in names for x in columns["annotations"][name]]
    try:
        for text in texts:
            as_text(text)
    except ValueError:
        return False
    return all(isinstance(x, int) and abs(x) < 2**63 for x in ids)


def read_json(json_file: str) -> Any:
    """Reads the content of a JSON file in any of the usual encodings.

    Raises:
        DatasetError: the file does not exist or is something else.
    """
    check_is_file(json_file)
    try:
        return json.loads(decode(Path(json_file).read_bytes()))
    except RecursionError as error:
        raise DatasetError(
            f"{json_file} cannot be read: its lists are nested too deeply"
        ) from error
    except MemoryError as error:
        raise DatasetError(f"{json_file} cannot be read: there is not enough memory") from error
    except ValueError as error:
        raise DatasetError(f"{json_file} is not valid JSON: {error}") from error
    except OSError as error:
        raise DatasetError(f"{json_file} cannot be read: {error}") from error


def decode(content: bytes) -> str:
    """Decodes UTF-8, UTF-16 and UTF-32 with or without a byte-order mark, or else Windows-1252."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding)
    try:
        return content.decode(json.detect_encoding(content), "surrogatepass")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def check_is_file(json_file: str) -> None:
    """Checks that there is an annotation file.

    Raises:
        DatasetError: there is none, or it is something else.
    """
    try:
        is_file = Path(json_file).is_file()
    except (OSError, ValueError) as error:
        raise DatasetError(f"the annotation file {json_file[:300]!r}: {error}") from error
    if is_file:
        return
    what = "is no file" if os.path.exists(json_file) else "does not exist"
    raise DatasetError(f"the annotation file {json_file} {what}")
