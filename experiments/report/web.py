"""A report as one HTML file that needs nothing beside it: pictures and style inside, no address outside."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from html import escape
from typing import Final

from folkmoot.experiments.report.document import (
    FILES_NOTE,
    Block,
    Document,
    Entry,
    Paragraph,
    Picture,
    Section,
    Table,
)

__all__ = ["web"]

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #595959; --line: #d9d9d9; --back: #ffffff;
  --stripe: #f5f5f5; --link: #005a9c; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --soft: #a8a8a8; --line: #444444; --back: #171717; --stripe: #212121;
    --link: #7cc0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { margin-top: 2rem; }
a { color: var(--link); }
p { max-width: 48rem; }
nav ul { padding-left: 1.25rem; margin: 0; }
figure { margin: 1.25rem 0; }
figcaption, .note { color: var(--soft); font-size: .9rem; max-width: 48rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
.wide { overflow-x: auto; }
.picture { width: fit-content; max-width: 100%; background: #ffffff;
  border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
img { display: block; max-width: max(100%, 44rem); height: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; }
.label { text-align: left; min-width: 8rem; }
tbody th { font-weight: 400; }
td { white-space: nowrap; }
td.label { white-space: normal; }
tbody tr:nth-child(even) { background: var(--stripe); }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } }
"""

_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SHOWN: Final = 96 / 150
"""Pixels on the screen for each of a picture: CSS has 96 to the inch, the pictures 150."""


def web(document: Document) -> str:
    """The whole text of report.html."""
    title = escape(document.title)
    body = [f"<h1>{title}</h1>"]
    for paragraph in document.lead:
        body += _block(paragraph)
    files = Section("Files", "files") if document.files else None
    contents = (*document.sections, *([files] if files else []))
    body += ['<nav aria-label="Contents">', *_contents(contents), "</nav>", "<main>"]
    for section in document.sections:
        body += _section(section, 2)
    if files:
        body += ['<section id="files">', "<h2>Files</h2>", f"<p>{escape(FILES_NOTE)}</p>", "<ul>"]
        body += [f"<li><code>tables/{t.name}.csv</code>: {escape(t.caption)}</li>" for t in document.files]
        body += ["</ul>", "</section>"]
    head = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
    ]
    return "\n".join([*head, *body, "</main>", "</body>", "</html>"]) + "\n"


def _contents(sections: tuple[Section, ...]) -> Iterator[str]:
    yield "<ul>"
    for section in sections:
        link = f'<a href="#{section.anchor}">{escape(section.title)}</a>'
        if section.inner:
            yield f"<li>{link}"
            yield from _contents(section.inner)
            yield "</li>"
        else:
            yield f"<li>{link}</li>"
    yield "</ul>"


def _section(section: Section, level: int) -> Iterator[str]:
    heading = f"h{min(level, 6)}"
    yield f'<section id="{section.anchor}">'
    yield f"<{heading}>{escape(section.title)}</{heading}>"
    for block in section.blocks:
        yield from _block(block)
    for inner in section.inner:
        yield from _section(inner, level + 1)
    yield "</section>"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield f"<p>{escape(block.text)}</p>"
    elif isinstance(block, Picture):
        yield from _picture(block)
    else:
        yield from _table(block)


def _picture(picture: Picture) -> Iterator[str]:
    # A PNG begins with 8 bytes of signature, 8 of chunk head, then width and height (RFC 2083).
    width, height = (round(_SHOWN * size) for size in struct.unpack(">II", picture.png[16:24]))
    encoded = base64.b64encode(picture.png).decode()
    yield "<figure>"
    yield (
        f'<div class="wide picture"><img alt="{escape(picture.alternative)}" '
        f'width="{width}" height="{height}" src="data:image/png;base64,{encoded}"></div>'
    )
    yield f"<figcaption>{escape(picture.caption)}</figcaption>"
    yield "</figure>"


def _table(table: Table) -> Iterator[str]:
    yield '<div class="wide">'
    yield "<table>"
    yield f"<caption>{escape(table.caption)}</caption>"
    heads = "".join(
        f'<th scope="col"{_label(place, table)}>{escape(column)}</th>'
        for place, column in enumerate(table.columns)
    )
    yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for row in table.rows:
        yield f"<tr>{''.join(_entry(entry, place, table) for place, entry in enumerate(row))}</tr>"
    yield "</tbody>"
    yield "</table>"
    yield "</div>"
    files = f"<code>tables/{table.name}.csv</code>, <code>tables/{table.name}.tex</code>"
    yield f'<p class="note">{escape(table.note)}{" " if table.note else ""}In files: {files}</p>'


def _entry(entry: Entry, place: int, table: Table) -> str:
    text = f"<strong>{escape(entry.text)}</strong>" if entry.best else escape(entry.text)
    if place < table.labels:
        return f'<th scope="row"{_label(place, table)}>{text}</th>'
    return f"<td{_label(place, table)}>{text}</td>"


def _label(place: int, table: Table) -> str:
    return "" if table.holds_numbers(place) else ' class="label"'
