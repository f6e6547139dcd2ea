"""`folkmoot experiment search`: each rule's best hyper-parameters, for honest members or the worst attack."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from folkmoot.experiments.cli.crew import crew_options, hire, refuse_what_does_not_fit
from folkmoot.experiments.grid_run import run_grid
from folkmoot.experiments.results import CellResult
from folkmoot.experiments.search import Best, Search, Trial, read_search, run_search, trial_count
from folkmoot.experiments.specification import Grid, grid_of, read_document, told_of
from folkmoot.experiments.workers import Workers
from folkmoot.node.cli.access import json_option, print_json
from folkmoot.node.errors import NodeError
from folkmoot.node.home import replace_file

__all__ = ["search"]


class TrialFailed(NodeError):
    """A cell of a trial could not be run."""


@click.command(short_help="Each rule's best setting.")
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for trials and findings.")
@crew_options
@json_option
def search(grid: Path, out: Path, workers: int | None, address: str | None, as_json: bool) -> None:
    """Search the [search.space] of GRID for each of its rules; write the findings to OUT/search.json.

    Every trial runs the rule under all attacks, partitions and seeds of the grid. An interrupted search goes
    on where it stopped.

    \b
    Example:
      folkmoot experiment search grid.toml --out searched
    """
    document = read_document(grid)
    with told_of(grid):
        asked = read_search(document)
        base = grid_of(asked.document)
        if address is None:
            refuse_what_does_not_fit(base, base.cells)
        with hire(base, workers, address) as crew:
            found = _run(asked, grid.read_bytes(), out, crew)
    report = _document(asked, found)
    replace_file(out / "search.json", json.dumps(report, indent=2).encode() + b"\n", mode=0o644)
    if as_json:
        print_json(report)
    else:
        _print(asked, out, found)


def _run(asked: Search, source: bytes, out: Path, crew: Workers) -> list[Best]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("trials", total=trial_count(asked))

        def run(grid: Grid) -> list[CellResult]:
            outcome = run_grid(grid, source, out, crew, collect=False)
            if outcome.failures:
                cell, why = outcome.failures[0]
                raise TrialFailed(f"cell {cell.id} ({cell.settings()}) failed: {why}")
            return list(outcome.results)

        def tried(rule: str, trial: Trial) -> None:
            progress.update(bar, advance=1, description=f"{rule}: {trial.accuracy:.3f}")

        return run_search(asked, run, tried)


def _document(asked: Search, found: list[Best]) -> dict[str, object]:
    return {
        "objective": asked.objective,
        "sampler": asked.sampler,
        "seed": asked.seed,
        "rules": [
            {
                "rule": best.rule,
                "accuracy": best.best.accuracy,
                "best": dict(best.best.values),
                "trials": [{"values": dict(t.values), "accuracy": t.accuracy} for t in best.trials],
            }
            for best in found
        ],
    }


def _print(asked: Search, out: Path, found: list[Best]) -> None:
    named = {"honest": "accuracy without attack", "worst": "worst accuracy"}[asked.objective]
    table = Table("rule", named, "best setting", title="Best of the trials")
    for best in found:
        values = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in best.best.values.items()
        )
        table.add_row(best.rule, f"{best.best.accuracy:.3f}", values)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"All trials: {out / 'search.json'}", soft_wrap=True)
