"""Writes docs/config.md from the comments of the files of keys and the table of choices.

python tools/write_config_page.py
"""

import re
from pathlib import Path

from groupdetr_d2.config.choices import CHOICES

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Configuration keys

The keys that this plugin adds to
[Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references),
and those of Detectron2 whose default it changes. Any of them can stand in a yaml or, as
`KEY VALUE`, at the end of a command. A key that takes one of several words is checked before
anything else is done. `tools/write_config_page.py` writes this page from
`keys.py`, `data_keys.py` and `choices.py` of `groupdetr_d2/config/`.

| key | default | description |
|---|---|---|
"""
NAMED = {
    "MODEL.COMPILE",
    "MODEL.DETR.TWO_STAGE",
    "MODEL.DETR.VARIANT",
    "MODEL.META_ARCHITECTURE",
}


def main() -> None:
    """Writes the page."""
    (ROOT / "docs/config.md").write_text(page(source_of_keys()))


def source_of_keys() -> str:
    """Reads the files that have the keys."""
    folder = ROOT / "groupdetr_d2/config"
    return "\n".join((folder / name).read_text() for name in ("keys.py", "data_keys.py"))


def page(source: str) -> str:
    """Formats one row per key; the comment above a key is its description."""
    rows, comment = [], []
    for line in source.splitlines():
        text = line.strip()
        match = re.match(r"cfg\.([\w.]+) = (.*)", text)
        if text.startswith("#"):
            comment.append(text.lstrip("# "))
        elif match and match[2] != "CN()":
            what = " ".join([*comment, *words_of(match[1])]).replace("|", "\\|")
            rows.append(f"| `{match[1]}` | `{match[2]}` | {what} |")
            comment = []
        else:
            comment = []
    return HEAD + "\n".join([*rows, *sorted(rows_of_detectron2(rows))]) + "\n"


def words_of(key: str) -> list[str]:
    """The sentence that lists the words of a key; nothing where its description names them."""
    words = CHOICES.get(key)
    if words is None or key in NAMED:
        return []
    return [f"One of {', '.join(f'`{word}`' if word else 'empty' for word in words)}."]


def rows_of_detectron2(rows: list[str]) -> list[str]:
    """Rows for Detectron2's own keys of several words, of which this plugin takes some."""
    known = {row.split("`")[1] for row in rows}
    return [
        f"| `{key}` | Detectron2's | Detectron2's key. {words_of(key)[0]} |"
        for key, words in CHOICES.items()
        if key not in known and not callable(words)
    ]


if __name__ == "__main__":
    main()
