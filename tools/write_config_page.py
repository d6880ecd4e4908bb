"""Writes docs/config.md from the comments of groupdetr_d2/config/keys.py.

python tools/write_config_page.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Configuration keys

What this plugin adds to
[Detectron2's keys](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references),
and those of Detectron2 whose default it changes. Any of them can stand in a yaml or, as
`KEY VALUE`, at the end of a command. `tools/write_config_page.py` writes this page from the
comments of `groupdetr_d2/config/keys.py`.

| key | default | what it is |
|---|---|---|
"""


def main() -> None:
    """Writes the page."""
    (ROOT / "docs/config.md").write_text(page((ROOT / "groupdetr_d2/config/keys.py").read_text()))


def page(source: str) -> str:
    """One row a key; a comment holds for the key or the node that it stands above."""
    rows, comment = [], []
    for line in source.splitlines():
        text = line.strip()
        match = re.match(r"cfg\.([\w.]+) = (.*)", text)
        if text.startswith("#"):
            comment.append(text.lstrip("# "))
        elif match and match[2] != "CN()":
            what = " ".join(comment).replace("|", "\\|")
            rows.append(f"| `{match[1]}` | `{match[2]}` | {what} |")
            comment = []
        elif not match:
            comment = []
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
