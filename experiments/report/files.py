"""One table as a file for programs (CSV) or for papers (LaTeX)."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from typing import Final

from folkmoot.experiments.report.document import Entry, Table

__all__ = ["csv_text", "escape_latex", "latex_text"]

_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': "''",
    "±": r"$\pm$",
    "–": r"\textendash{}",
    # After a line's end these two would be read as options of the line break.
    "[": "{[}",
    "*": "{*}",
}
_NARROW: Final = 9
"""Columns up to which a table has type and space of common size."""
_LONG: Final = 36
"""Characters from which on a field is broken into lines."""
_HEAD: Final = 14
"""Characters in a line of a column's head."""


def csv_text(table: Table) -> str:
    """RFC 4180 (lines end in CRLF) with a line of names: the values in full precision, absent ones empty."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow("" if entry.value is None else entry.value for entry in row)
    return out.getvalue()


def latex_text(table: Table) -> str:
    r"""A `table` environment for LaTeX with \usepackage{booktabs}; the best value of a row is bold."""
    kinds = "".join("r" if table.holds_numbers(place) else "l" for place in range(len(table.columns)))
    heads = [_head(column, kinds[place]) for place, column in enumerate(table.columns)]
    rows = [" & ".join(_entry(entry) for entry in row) + r" \\" for row in table.rows]
    note = [rf"\par\smallskip\footnotesize {escape_latex(table.note)}"] if table.note else []
    lines = [
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering" + (r"\small" if len(kinds) <= _NARROW else r"\footnotesize\setlength{\tabcolsep}{3pt}"),
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *note,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is, in one line."""
    plain = "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
    return re.sub("-(?=-)", "-{}", plain)


def _head(column: str, kind: str) -> str:
    lines = textwrap.wrap(column, _HEAD, break_long_words=False)
    if len(lines) < 2:
        return escape_latex(column)
    stacked = r"\\".join(map(escape_latex, lines))
    return rf"\begin{{tabular}}[b]{{@{{}}{kind}@{{}}}}{stacked}\end{{tabular}}"


def _entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    if len(entry.text) > _LONG:
        text = rf"\parbox[t]{{5.5cm}}{{\raggedright {text}\strut}}"
    return rf"\textbf{{{text}}}" if entry.best else text
