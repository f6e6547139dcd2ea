"""A report in Markdown (CommonMark with GitHub's tables), with links to the pictures and tables beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
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

__all__ = ["escape", "markdown"]

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]#|!~$@])")


def markdown(document: Document) -> str:
    """The whole text of report.md."""
    lines = [f"# {escape(document.title)}", ""]
    for paragraph in document.lead:
        lines += _block(paragraph)
    lines += [*_contents(document.sections, 0), *(["- [Files](#files)"] if document.files else []), ""]
    for section in document.sections:
        lines += _section(section, 2)
    if document.files:
        lines += ['<a id="files"></a>', "", "## Files", "", escape(FILES_NOTE), ""]
        lines += [f"- [{t.name}.csv](tables/{t.name}.csv): {escape(t.caption)}" for t in document.files]
    return "\n".join(lines).rstrip("\n") + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    one_line = " ".join(text.split())
    safe = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", safe)


def _contents(sections: tuple[Section, ...], depth: int) -> Iterator[str]:
    for section in sections:
        yield f"{'  ' * depth}- [{escape(section.title)}](#{section.anchor})"
        yield from _contents(section.inner, depth + 1)


def _section(section: Section, level: int) -> Iterator[str]:
    yield f'<a id="{section.anchor}"></a>'
    yield ""
    yield f"{'#' * min(level, 6)} {escape(section.title)}"
    yield ""
    for block in section.blocks:
        yield from _block(block)
    for inner in section.inner:
        yield from _section(inner, level + 1)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield escape(block.text)
    elif isinstance(block, Picture):
        yield f"![{escape(block.alternative)}](pictures/{block.name}.png)"
        yield ""
        yield escape(block.caption)
    else:
        yield from _table(block)
    yield ""


def _table(table: Table) -> Iterator[str]:
    files = f"[CSV](tables/{table.name}.csv), [LaTeX](tables/{table.name}.tex)"
    yield f"**{escape(table.caption)}** ({files})"
    yield ""
    yield f"| {' | '.join(escape(column) for column in table.columns)} |"
    rulers = ["---:" if table.holds_numbers(place) else "---" for place in range(len(table.columns))]
    yield f"| {' | '.join(rulers)} |"
    for row in table.rows:
        yield f"| {' | '.join(_entry(entry) for entry in row)} |"
    if table.note:
        yield ""
        yield escape(table.note)


def _entry(entry: Entry) -> str:
    return f"**{escape(entry.text)}**" if entry.best else escape(entry.text)
