"""A report before it is written down: sections with paragraphs, tables and pictures.

Values only. How they look in Markdown, HTML, LaTeX or CSV is the business of the modules that write those.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from folkmoot.experiments.results import Setting

__all__ = [
    "FILES_NOTE",
    "MISSING",
    "Block",
    "Document",
    "Entry",
    "Names",
    "Paragraph",
    "Picture",
    "Section",
    "Table",
    "mark_best",
    "number",
    "words",
]

MISSING = "–"
"""Shown where there is no value."""

FILES_NOTE = "The CSV files hold values in full precision, accuracies as fractions."

_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class Entry:
    """One field of a table: what is shown, and the value in full precision for programs."""

    text: str
    value: Setting | None
    best: bool = False


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text; nothing in it is markup."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of entries under columns; the first `labels` columns say what a row is."""

    name: str
    """Of its files, without a suffix."""
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    labels: int = 1
    note: str = ""

    def holds_numbers(self, place: int) -> bool:
        """Whether the column at this place has numbers and no text, so that it is aligned to the right."""
        return not any(isinstance(row[place].value, str) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with its caption, and the words for those who cannot see it."""

    name: str
    """Of its file, without a suffix."""
    png: bytes
    caption: str
    alternative: str


Block = Paragraph | Table | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands under it; `inner` sections are one level lower."""

    title: str
    anchor: str
    blocks: tuple[Block, ...] = ()
    inner: tuple[Section, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report. `files`: tables that are only written as CSV, too long to be read by a person."""

    title: str
    lead: tuple[Paragraph, ...]
    sections: tuple[Section, ...]
    files: tuple[Table, ...] = ()

    def blocks(self) -> list[Block]:
        """Every block of every section, in reading order."""
        found: list[Block] = []
        waiting = list(self.sections)
        while waiting:
            section = waiting.pop(0)
            found.extend(section.blocks)
            waiting[:0] = section.inner
        return found


def words(text: str) -> Entry:
    """A field that holds text."""
    return Entry(text, text)


def number(value: float | None, digits: int, scale: float = 1.0, sign: str = "") -> Entry:
    """A field that shows value x scale with so many decimals and keeps the value; sign: "" or "+"."""
    if value is None:
        return Entry(MISSING, None)
    shown = f"{value * scale:{sign}.{digits}f}"
    return Entry(shown.lstrip("+-") if float(shown) == 0 else shown, value)


def mark_best(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The same fields with the highest number marked, and every other one that is shown as the same number.

    Nothing is marked where there is nothing to compare.
    """
    known = [(e.value, e.text) for e in entries if isinstance(e.value, int | float)]
    if len(known) < 2:
        return tuple(entries)
    best = max(known)[1].split()[0]
    return tuple(replace(e, best=e.value is not None and e.text.split()[0] == best) for e in entries)


@dataclass(slots=True)
class Names:
    """Gives every label a name of its own that is fit for files and links: of a-z, 0-9, dots and hyphens."""

    _taken: set[str] = field(default_factory=set)

    def of(self, *labels: str) -> str:
        """A name not given before; the same labels in the same order of calls get the same names."""
        parts = (re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") for label in labels)
        base = "-".join(part for part in parts if part)[:_LONGEST_NAME].strip("-.") or "all"
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base}-{count}"
        self._taken.add(name)
        return name
