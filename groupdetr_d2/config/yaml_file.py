"""Checks of a yaml and of the ones that it is based on, ahead of Detectron2's reading of them."""

import os
from pathlib import Path
from typing import Any

import yaml

BASE = "_BASE_"
LARGEST, MOST_VALUES = 2**20, 10_000  # bytes of a file, values in it
DEEPEST = 100  # brackets in one another


class YamlError(ValueError):
    """A yaml cannot be used; the message names the file."""


def check_yaml(path: str, above: tuple[str, ...] = ()) -> dict:
    """Reads a yaml, and checks those that its `_BASE_` names.

    Args:
        above: the files that led here, by which a circle is noticed.

    Returns:
        the content of the file alone.

    Raises:
        YamlError: naming the file: it is no mapping of sections, it is based on itself, or on
            something that is no file of this machine.
    """
    real = os.path.realpath(path)
    if real in above:
        raise YamlError(f"{path} is based on itself ({BASE})")
    content = load_mapping(path)
    check_keys(path, content)
    bases = content.get(BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        check_yaml(base_path(path, base), (*above, real))
    return content


def load_mapping(path: str | Path, most: int = MOST_VALUES) -> dict:
    """Reads a yaml file of sections, whatever is in it.

    Args:
        most: values that it may stand for.

    Raises:
        YamlError: naming the file and what is wrong.
    """
    try:
        if os.path.getsize(path) > LARGEST * max(1, most // MOST_VALUES):
            raise YamlError(f"{path} has more than a megabyte: it is no configuration")
        text = Path(path).read_text(encoding="utf-8-sig")
        if depth_of(text) > DEEPEST:
            raise YamlError(f"{path} is nested too deeply")
        content = yaml.safe_load(text)
        count_values(path, content, most)
    except RecursionError as error:
        raise YamlError(f"{path} is nested too deeply") from error
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"{path} is not plain yaml: {error}") from error
    if not isinstance(content, dict):
        kind = "empty" if content is None else f"a {type(content).__name__}"
        raise YamlError(f"{path} is {kind}, not a mapping of keys such as MODEL to values")
    return content


def depth_of(text: str) -> int:
    """The most brackets that are open at once, which the parser would take its time over."""
    depth = deepest = 0
    for letter in text:
        if letter in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in "]}":
            depth -= 1
    return deepest


def count_values(path: str | Path, value: Any, most: int, count: int = 0) -> int:
    """Counts values where they are used: anchors may stand for billions of them.

    Raises:
        YamlError: there are too many.
    """
    count += 1
    if count > most:
        raise YamlError(f"{path} stands for more than {most} values: it is no configuration")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        count = count_values(path, part, most, count)
    return count


def check_keys(path: str | Path, value: Any) -> None:
    """Checks that the keys of a configuration are texts.

    Raises:
        YamlError: one is not.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise YamlError(f"{path} has the key {key!r}: keys are texts")
            check_keys(path, part)


def base_path(path: str, base: Any) -> str:
    """The path of a yaml that another one is based on.

    Raises:
        YamlError: it is no file of this machine; addresses are never opened.
    """
    if not isinstance(base, str) or "://" in base:
        raise YamlError(f"{path}: {BASE} is {base!r}; it has to be the path of a yaml")
    found = os.path.join(os.path.dirname(path), os.path.expanduser(base))
    if not os.path.isfile(found):
        what = "is a folder" if os.path.isdir(found) else "does not exist"
        raise YamlError(f"{path}: its {BASE} {found} {what}")
    return found
