"""`folkmoot experiment run`: a grid of federations in memory, in parallel, resumable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from folkmoot.experiments.cells import Cell
from folkmoot.experiments.cli.crew import crew_options, hire, refuse_what_does_not_fit
from folkmoot.experiments.grid_run import GridOutcome, pending, run_grid
from folkmoot.experiments.report.findings import find
from folkmoot.experiments.report.standings import Standing, standings
from folkmoot.experiments.specification import Grid, read_grid, told_of
from folkmoot.experiments.workers import Finished, Workers
from folkmoot.node.cli.access import json_option, print_json
from folkmoot.node.errors import ExitCode

__all__ = ["run"]


@click.command(short_help="Run a grid; what is done stays done.")
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@crew_options
@click.option("--dry-run", is_flag=True, help="Check the grid and say what would run.")
@json_option
def run(
    grid: Path, out: Path, workers: int | None, address: str | None, dry_run: bool, as_json: bool
) -> ExitCode:
    """Run every cell of GRID, a TOML file, that OUT does not hold yet.

    Each cell is a federation in memory; its result is written when it is done, so an interrupted run goes on
    where it stopped. The same grid gives the same bytes in OUT/results.jsonl and OUT/results.parquet.

    \b
    Example:
      folkmoot experiment run grid.toml --out found
      folkmoot experiment report found
    """
    specification = read_grid(grid)
    missing = pending(specification, out)
    if address is None:
        # A cluster may have data that this machine has not.
        with told_of(grid):
            refuse_what_does_not_fit(specification, missing)
    if dry_run:
        _foresee(specification, missing, as_json=as_json)
        return ExitCode.DONE
    with hire(specification, workers, address) as crew:
        outcome = _run(specification, grid.read_bytes(), out, crew, missing)
    if as_json:
        print_json(_document(specification, out, outcome))
    else:
        _print(specification, out, outcome)
    return ExitCode.FAILED if outcome.failures else ExitCode.DONE


def _foresee(grid: Grid, missing: Sequence[Cell], *, as_json: bool) -> None:
    left = {cell.id for cell in missing}
    if as_json:
        cells = [{"cell": c.id, "done": c.id not in left, "settings": c.settings()} for c in grid.cells]
        print_json({"name": grid.name, "cells": cells})
    else:
        click.echo(f"{len(grid.cells)} cells, {len(grid.cells) - len(left)} of them done")


@dataclass(slots=True)
class _Board:
    """The progress bar: cells done, and the rounds of running ones."""

    progress: Progress
    rounds: dict[str, int]
    seen: dict[str, int] = field(default_factory=dict)

    def advance(self, cell: str, rounds: int) -> None:
        self.progress.advance(self.progress.task_ids[0], rounds - self.seen.get(cell, 0))
        self.seen[cell] = rounds

    def finished(self, done: Finished) -> None:
        self.advance(done.cell.id, self.rounds[done.cell.id])


def _run(grid: Grid, source: bytes, out: Path, crew: Workers, missing: Sequence[Cell]) -> GridOutcome:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rounds,"),
        TimeElapsedColumn(), TextColumn("gone, left"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=os.environ.get("TERM") == "dumb") as progress:
        kept = len(grid.cells) - len(missing)
        note = f", {kept} kept" if kept else ""
        progress.add_task(f"{len(missing)} cells{note}", total=sum(cell.rounds for cell in missing))
        board = _Board(progress, {cell.id: cell.rounds for cell in missing})
        return run_grid(grid, source, out, crew, board.finished, board.advance)


def _document(grid: Grid, out: Path, outcome: GridOutcome) -> dict[str, object]:
    return {
        "name": grid.name,
        "folder": str(out),
        "cells": len(grid.cells),
        "done": len(outcome.results),
        "failures": [
            {"cell": cell.id, "why": why, "settings": cell.settings()} for cell, why in outcome.failures
        ],
        "ranking": [
            {"rule": p.rule, "worst": p.worst, "attacks": p.attacks, "honest": p.honest, "mean": p.mean}
            for p in _ranking(outcome)
        ],
    }


def _print(grid: Grid, out: Path, outcome: GridOutcome) -> None:
    console = Console()
    console.print(f"{len(outcome.results)} of {len(grid.cells)} cells are done, in {out}", highlight=False)
    table = Table("rule", "worst accuracy", "under", "without attack", title="Ranking by worst case")
    for place in _ranking(outcome):
        honest = "–" if place.honest is None else f"{place.honest:.3f}"
        table.add_row(place.rule, f"{place.worst:.3f}", ", ".join(place.attacks), honest)
    if outcome.results:
        console.print(table)
    for why, cells in _by_reason(outcome).items():
        shown = f"{len(cells)} failed, such as {cells[0]}: {why}"
        console.print(shown, markup=False, highlight=False, soft_wrap=True)
    if not outcome.failures:
        console.print(f"Pictures and tables: folkmoot experiment report {out}", highlight=False)


def _ranking(outcome: GridOutcome) -> list[Standing]:
    return standings(find(outcome.results)) if outcome.results else []


def _by_reason(outcome: GridOutcome) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for cell, why in outcome.failures:
        reasons.setdefault(why, []).append(cell.id)
    return reasons
