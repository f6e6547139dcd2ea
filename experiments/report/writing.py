"""Writing a report to disk: both documents, the pictures and the tables; the same results, the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from folkmoot.experiments.report.compose import compose
from folkmoot.experiments.report.document import Document, Picture, Table
from folkmoot.experiments.report.files import csv_text, latex_text
from folkmoot.experiments.report.findings import find
from folkmoot.experiments.report.markdown import markdown
from folkmoot.experiments.report.web import web
from folkmoot.experiments.results import CellResult
from folkmoot.node.home import replace_file

__all__ = ["write_report"]


def write_report(
    folder: Path, results: Sequence[CellResult], out: Path | None = None, *, expected: int | None = None
) -> list[Path]:
    """Write a grid's report into `folder`/report, or into `out`, and return the files written, in order.

        report.md            with links to the pictures and tables beside it
        report.html          the same with everything inside it
        pictures/*.png       accuracy over rounds, heat maps
        tables/*.csv, *.tex  in full precision, and for LaTeX with booktabs

    results: finished cells in any order. expected: how many cells the grid has; with fewer results the report
    says that it is incomplete. Files of an earlier report that this one does not have stay. Raises NoResults,
    UnusableResult, OSError.
    """
    target = folder / "report" if out is None else out
    contents = _contents(compose(find(results), expected))
    for name in contents:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        replace_file(target / name, content, mode=0o644)
    return [target / name for name in contents]


def _contents(document: Document) -> dict[str, bytes]:
    """What each file of the report holds, by its path in the report's folder."""
    found = {"report.md": markdown(document).encode(), "report.html": web(document).encode()}
    for block in document.blocks():
        if isinstance(block, Picture):
            found[f"pictures/{block.name}.png"] = block.png
        elif isinstance(block, Table):
            found[f"tables/{block.name}.csv"] = csv_text(block).encode()
            found[f"tables/{block.name}.tex"] = latex_text(block).encode()
    for table in document.files:
        found[f"tables/{table.name}.csv"] = csv_text(table).encode()
    return found
