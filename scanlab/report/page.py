"""The report as one HTML page that stands alone: pictures and tables inside it, nothing from the network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from scanlab.report.document import Document, Picture, Section

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --faint: #59636e; --rule: #d0d7de;
  --band: #f6f8fa; --accent: #b34700; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --faint: #9198a1; --rule: #30363d;
  --band: #161b22; --accent: #ff9d5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; line-height: 1.35; margin: 3rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
.about { color: var(--faint); margin: .25rem 0; max-width: 62rem; }
.said { font-size: 1.05rem; border-left: 3px solid var(--accent); padding-left: .75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { color: var(--faint); font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; }
.number { text-align: right; }
tbody tr:nth-child(even) { background: var(--band); }
tbody td:first-child { font-weight: 600; }
.pictures { columns: 2 30rem; column-gap: 1rem; margin-top: 1rem; }
.pictures img { width: 100%; height: auto; margin-bottom: 1rem; background: #ffffff; border: 1px solid var(--rule);
  border-radius: 8px; padding: .5rem; break-inside: avoid; }
.pictures:has(> :only-child) { columns: auto; max-width: 48rem; }
a { color: var(--accent); }
@media print { body { max-width: none; } h2 { break-after: avoid; } tr, img { break-inside: avoid; } }
"""

LONG_TEXT = 48


def html(document: Document, drawn: Mapping[str, Sequence[Path]]) -> str:
    """Return the page; `drawn` holds the files of each picture by its name, one of them an SVG."""
    body = [f"<h1>{escape(document.title)}</h1>"]
    body += [f'<p class="about">{escape(line)}</p>' for line in document.about]
    for section in document.sections:
        body += _section(section, drawn)
    links = ", ".join(
        f'<a download="{escape(name)}" href="{_data_uri("text/csv", text.encode())}">{escape(name)}</a>'
        for name, text in document.files.items()
    )
    body.append(f"<h2>The same numbers in full</h2>\n<p>{links}</p>")
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>{STYLE}</style>"
    )
    inside = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{inside}\n</body>\n</html>\n'


def _section(section: Section, drawn: Mapping[str, Sequence[Path]]) -> list[str]:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f'<p class="said">{escape(section.text)}</p>')
    if section.pictures:
        images = "\n".join(_image(picture, drawn[picture.name]) for picture in section.pictures)
        parts.append(f'<div class="pictures">\n{images}\n</div>')
    for caption, frame in section.tables.items():
        parts.append(f'<h3>{escape(caption)}</h3>\n<div class="scroll">\n{_table(frame)}\n</div>')
    return parts


def _image(picture: Picture, files: Sequence[Path]) -> str:
    svg = next(path for path in files if path.suffix == ".svg")
    return f'<img alt="{escape(picture.alt)}" src="{_data_uri("image/svg+xml", svg.read_bytes())}">'


def _table(frame: pd.DataFrame) -> str:
    numeric = {name for name in frame.columns if all(not cell or cell[0].isdigit() for cell in frame[name])}
    heads = "".join(f"<th{_class(name in numeric, '')}>{escape(name)}</th>" for name in frame.columns)
    rows = [
        "".join(
            f"<td{_class(name in numeric, cell)}>{escape(cell)}</td>"
            for name, cell in zip(frame.columns, row, strict=True)
        )
        for row in frame.itertuples(index=False)
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _class(number: bool, text: str) -> str:
    if number:
        return ' class="number"'
    return ' class="long"' if len(text) > LONG_TEXT else ""


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
