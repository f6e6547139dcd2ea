"""`folkmoot experiment report`: pictures, tables and a ranking of what a grid found."""

from __future__ import annotations

from pathlib import Path

import click

from folkmoot.experiments.report import write_report
from folkmoot.experiments.results import read_results
from folkmoot.experiments.specification import read_grid
from folkmoot.node.cli.access import json_option, print_json
from folkmoot.node.errors import FileProblem

__all__ = ["report"]


@click.command(short_help="Pictures, tables and a ranking of a grid.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where it goes; FOLDER/report if left out.")
@json_option
def report(folder: Path, out: Path | None, as_json: bool) -> None:
    """Write Markdown, one self-contained HTML page, pictures, CSV and LaTeX for the finished cells in FOLDER.

    \b
    Example:
      folkmoot experiment report found
    """
    try:
        results = read_results(folder)
    except (OSError, ValueError) as error:
        raise FileProblem(f"cannot read the results in {folder}: {error}") from None
    if not results:
        raise FileProblem(f"{folder} holds no finished cell; folkmoot experiment run GRID --out {folder}")
    grid = folder / "grid.toml"
    expected = len(read_grid(grid).cells) if grid.exists() else None
    written = write_report(folder, results, out, expected=expected)
    if as_json:
        print_json({"files": [str(path) for path in written]})
    else:
        for path in written:
            click.echo(path)
