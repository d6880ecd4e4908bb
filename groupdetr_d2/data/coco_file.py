"""Reading a COCO annotation file into columns; a file of COCO's size takes seconds."""

import codecs
import functools
import json
import mmap
import os
from collections.abc import Sequence
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
from .segmentations import json_texts

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


class _MaskAnnotation(_Annotation):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Category(msgspec.Struct, gc=False):
    id: Identity
    name: str


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: Sequence[Any]
    categories: list[_Category]


class _BoxFile(_File):
    annotations: list[_Annotation]


class _MaskFile(_File):
    annotations: list[_MaskAnnotation]


def read_columns(json_file: str, *, with_masks: bool = False) -> CocoColumns:
    """Reads an annotation file whose boxes may still be bad; a large one is kept for later runs.

    Args:
        with_masks: whether masks are read, too.

    Raises:
        DatasetError: naming the file, the first thing that is wrong with it, and the remedy.
    """
    check_is_file(json_file)
    state = os.stat(json_file)
    return _read_columns(os.path.abspath(json_file), state.st_mtime_ns, state.st_size, with_masks)


@functools.lru_cache(maxsize=16)
def _read_columns(json_file: str, changed: int, size: int, with_masks: bool) -> CocoColumns:
    if size < CACHED_SIZE:
        return _read_or_raise(json_file, with_masks)
    read = functools.partial(_read_or_raise, json_file, with_masks)
    return cached_columns(json_file, read, with_masks=with_masks)


def _read_or_raise(json_file: str, with_masks: bool) -> CocoColumns:
    columns, findings = examine(json_file, with_masks=with_masks)
    error = next((finding for finding in findings if finding.is_error), None)
    if error is not None or columns is None:
        raise DatasetError(f"{json_file}: {error.message() if error else 'it cannot be read'}")
    return columns


def examine(
    json_file: str, *, with_masks: bool = False
) -> tuple[CocoColumns | None, list[Finding]]:
    """Reads an annotation file, and finds what is wrong with its records and their relations.

    Args:
        with_masks: whether masks are read, too.

    Returns:
        the columns, None if there are errors, and the findings.

    Raises:
        DatasetError: the file does not exist, or is no JSON.
    """
    check_is_file(json_file)
    table, masks = read_fast(json_file, with_masks=with_masks)
    findings: list[Finding] = []
    if table is None:
        content = read_json(json_file)
        table, findings = read_table(content)
        masks = masks_of(content) if with_masks else None
    if not any(finding.is_error for finding in findings):
        findings += find_relations(table)
    has_errors = any(finding.is_error for finding in findings)
    return None if has_errors else columns_of(table, masks), findings


def masks_of(content: Any) -> list[bytes]:
    """The JSON of each annotation's mask in the content of a file."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    records = annotations if isinstance(annotations, list) else []
    return json_texts(a.get("segmentation") for a in records if isinstance(a, dict))


def read_fast(
    json_file: str, *, with_masks: bool = False
) -> tuple[Table | None, list[bytes] | None]:
    """Reads a file in which everything is as it should be; None for any other.

    Returns:
        the table, and the JSON of each annotation's mask where they are read.
    """
    kind = _MaskFile if with_masks else _BoxFile
    try:
        with open(json_file, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                parsed = msgspec.json.decode(content, type=kind)
                masks = [bytes(a.segmentation) for a in parsed.annotations] if with_masks else None
                for annotation in parsed.annotations if with_masks else ():
                    annotation.segmentation = msgspec.Raw(b"")  # a view of the mapped file
    except (msgspec.MsgspecError, ValueError, OSError, RecursionError):
        return None, None
    kinds = {key: getattr(parsed, key) for key in RULES}
    unread = attrgetter("ignore", "rotation", "angle", "theta", "attributes")
    if any(x is not None for a in parsed.annotations for x in unread(a)):
        return None, None
    columns = {
        key: {name: list(map(attrgetter(name), kinds[key])) for name in RULES[key]} for key in RULES
    }
    return (Table(columns), masks) if _is_plain(columns) else (None, None)


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
