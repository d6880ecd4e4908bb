"""The pieces of an HTML page that holds everything in one file.

Pictures are buttons that enlarge them in a dialog: with a click, or with the keyboard (Enter opens,
arrows go to the next, Escape closes). The script is inside the page.
"""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto 4rem; max-width: 1100px;
  padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.5rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1rem; margin: 1.4rem 0 0.5rem }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 14px }
a { color: #0b57d0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: 2px 12px; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere;
  vertical-align: top } table.facts td:first-child { white-space: nowrap }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 13px }
summary { cursor: pointer } details { margin: 0.4rem 0 }
.keys { display: flex; flex-wrap: wrap; gap: 0.2rem 2rem; margin: 0.8rem 0 }
.key { font-size: 1.9rem; font-weight: 600; margin-right: 0.3rem }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr));
  gap: 1rem }
figure { margin: 0 } figcaption { font-size: 13px; color: #444; overflow-wrap: anywhere }
button.zoom { border: 0; padding: 0; background: none; cursor: zoom-in; display: block;
  max-width: 100% }
button.zoom:focus-visible { outline: 3px solid #0b57d0; outline-offset: 2px }
button.zoom img { display: block; max-width: 100%; height: auto }
.grid button.zoom, .grid button.zoom img { width: 100% }
dialog { border: 0; padding: 0; max-width: 100vw; max-height: 100vh; width: 100vw; height: 100vh;
  background: #111 } dialog::backdrop { background: #000c }
dialog figure { height: 100%; display: flex; flex-direction: column }
dialog div { flex: 1; min-height: 0; overflow: auto; display: flex }
dialog img { margin: auto; width: 100%; height: 100%; object-fit: contain; cursor: zoom-out }
dialog figcaption { color: #eee; padding: 0.5rem 1rem }
dialog nav { padding: 0 1rem 0.6rem } dialog nav button { font-size: 1rem; padding: 0.3rem 1rem }
@media (max-width: 700px) { dialog img { flex: none; width: auto; max-width: none; height: 60vh }
  table.facts td { display: block; border: 0; padding: 0 }
  table.facts td:first-child { color: #555; padding-top: 0.4rem } }
"""
DIALOG = (
    "<dialog><figure><div><img alt=''></div><figcaption></figcaption>"
    '<nav><button type="button" value="-1" aria-label="previous picture">&#8592;</button>'
    '<button type="button" value="1" aria-label="next picture">&#8594;</button>'
    '<button type="button" value="0">close</button></nav></figure></dialog>'
)
SCRIPT = """
const box = document.querySelector('dialog'), shown = box.querySelector('img');
const pictures = [...document.querySelectorAll('button.zoom')];
let place = 0;
function show(to) {
  place = (to + pictures.length) % pictures.length;
  const own = pictures[place].querySelector('img');
  shown.src = own.src; shown.alt = own.alt;
  box.querySelector('figcaption').textContent = own.alt;
}
pictures.forEach((button, i) => button.addEventListener('click', () => {
  show(i); box.showModal(); box.querySelector('[value="1"]').focus();
}));
box.querySelectorAll('button').forEach(button => button.addEventListener('click', () => {
  if (+button.value) show(place + +button.value); else box.close();
}));
box.querySelector('div').addEventListener('click', () => box.close());
box.addEventListener('keydown', event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) { show(place + step); event.preventDefault(); }
});
box.addEventListener('close', () => pictures[place].focus());
"""
KINDS = {".png": "png", ".jpg": "jpeg"}
THREE_DIGITS = ("precision", "recall", "F1")  # columns in [0, 1]; others have one digit


def image_tag(path: Path, alt: str) -> str:
    """Embeds a picture in the page, which is enlarged on a click."""
    return picture(path.read_bytes(), KINDS[path.suffix], alt)


def picture(content: bytes, kind: str, alt: str) -> str:
    """Embeds the content of a picture's file, which is enlarged on a click.

    Args:
        kind: "png" or "jpeg".
        alt: what it shows; its caption where it is large.
    """
    name, data = html.escape(alt), base64.b64encode(content).decode()
    tag = f'<img alt="{name}" src="data:image/{kind};base64,{data}">'
    return f'<button type="button" class="zoom" aria-label="enlarge: {name}">{tag}</button>'


def grid(pictures: Mapping[str, bytes], kind: str) -> str:
    """Shows pictures side by side where there is room, each above its caption."""
    figures = [
        f"<figure>{picture(content, kind, caption)}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, content in pictures.items()
    ]
    return f'<div class="grid">{"".join(figures)}</div>'


def table(rows: Sequence[dict]) -> str:
    """Formats one line per row, under the keys of the first row."""
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    lines = [
        "<tr>" + "".join(f"<td>{_cell(key, x)}</td>" for key, x in row.items()) + "</tr>"
        for row in rows
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _cell(key: str, value: object) -> str:
    if not isinstance(value, float):
        return html.escape(str(value))
    if not math.isfinite(value):
        return "&ndash;"
    return f"{value:.3f}" if key in THREE_DIGITS else f"{value:.1f}"


def facts(values: Mapping[str, str]) -> str:
    """Formats names and what is known about them, one a line."""
    lines = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in values.items()
    ]
    return f'<table class="facts">{"".join(lines)}</table>'


def paragraph(content: str) -> str:
    """Formats a paragraph of plain text."""
    return f"<p>{html.escape(content)}</p>"


def subsection(title: str, content: str) -> str:
    """Formats a part of a section under a heading of its own."""
    return f"<h3>{html.escape(title)}</h3>{content}"


def text(content: str) -> str:
    """Formats preformatted text."""
    return f"<pre>{html.escape(content)}</pre>"


def folded(title: str, content: str) -> str:
    """Formats a section that is folded until it is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def key_numbers(numbers: Mapping[str, str]) -> str:
    """Formats a few numbers in large type."""
    parts = [
        f'<span><span class="key">{html.escape(value)}</span>{html.escape(name)}</span>'
        for name, value in numbers.items()
    ]
    return f'<p class="keys">{"".join(parts)}</p>'


def page(title: str, sections: Mapping[str, str]) -> str:
    """Formats the page, with links to its sections; empty ones are left out."""
    filled = {name: content for name, content in sections.items() if content}
    links = "".join(f'<a href="#part{i}">{html.escape(name)}</a>' for i, name in enumerate(filled))
    body = "".join(
        f'<section id="part{i}"><h2>{html.escape(name)}</h2>{content}</section>'
        for i, (name, content) in enumerate(filled.items())
    )
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><nav>{links}</nav>{body}"
        f"{DIALOG}<script>{SCRIPT}</script></body></html>"
    )
