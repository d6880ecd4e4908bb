"""The pieces of an HTML page that holds everything in one file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem;
  color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
img { max-width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: 2px 12px; text-align: right;
  border-bottom: 1px solid #eee } td:first-child, th:first-child { text-align: left }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 13px }
.key { font-size: 1.9rem; font-weight: 600; margin-right: 0.3rem } .keys span { margin-right: 2rem }
"""
KINDS = {".png": "png", ".jpg": "jpeg"}


def image_tag(path: Path, alt: str) -> str:
    """Embeds a picture in the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    kind = KINDS[path.suffix]
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{data}">'


def table(rows: Sequence[dict]) -> str:
    """Formats one line per row, under the keys of the first row."""
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    lines = [
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>"
        for row in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _cell(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else html.escape(str(value))


def text(content: str) -> str:
    """Formats preformatted text."""
    return f"<pre>{html.escape(content)}</pre>"


def folded(title: str, content: str) -> str:
    """Formats a section that is folded until it is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def key_numbers(numbers: dict[str, str]) -> str:
    """Formats a few numbers in large type."""
    parts = [
        f'<span><span class="key">{html.escape(value)}</span>{html.escape(name)}</span>'
        for name, value in numbers.items()
    ]
    return f'<p class="keys">{"".join(parts)}</p>'


def page(title: str, sections: dict[str, str]) -> str:
    """Formats the page; empty sections are left out."""
    body = "".join(
        f"<section><h2>{html.escape(name)}</h2>{content}</section>"
        for name, content in sections.items()
        if content
    )
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>{body}</body></html>"
    )
