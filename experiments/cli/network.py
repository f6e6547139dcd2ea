"""`folkmoot experiment network`: one cell of a grid as a real federation, compared with the one in memory."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from folkmoot.experiments.cells import Cell, ImpossibleCell
from folkmoot.experiments.cli.crew import refuse_what_does_not_fit
from folkmoot.experiments.network import Comparison, compare, require_network
from folkmoot.experiments.specification import Grid, read_grid, told_of
from folkmoot.node.cli.access import json_option, print_json
from folkmoot.node.datasets import load_dataset
from folkmoot.node.errors import ExitCode, FileProblem, UsageProblem

__all__ = ["network"]


@click.command(short_help="One cell in memory and as processes: the same models?")
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--cell", "chosen", metavar="ID", help="Of the cell; the first of the grid if left out.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the federation; a new one if left out."
)
@json_option
def network(grid: Path, chosen: str | None, out: Path | None, as_json: bool) -> ExitCode:
    """Run one cell of GRID in memory, then with real nodes, chain and gossip on this machine.

    Exit code 0 only if every honest node has the model of the run in memory after every round, bit for bit,
    and the audit holds. `folkmoot experiment run GRID --out DIR --dry-run --json` lists the cells.

    \b
    Example:
      folkmoot experiment network grid.toml --out federation
    """
    specification = read_grid(grid)
    cell = _cell(specification, chosen)
    try:
        require_network(cell)
    except ImpossibleCell as error:
        raise UsageProblem(str(error)) from None
    with told_of(grid):
        refuse_what_does_not_fit(specification, [cell])
    folder = out or Path(time.strftime("folkmoot-experiment-%Y%m%d-%H%M%S"))
    if folder.exists() and any(folder.iterdir()):
        raise FileProblem(f"{folder} is not empty; name another with --out")
    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:

        def tell(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(text, markup=False)

        found = compare(cell, grid, load_dataset(cell.data, specification.folder), folder, tell)
    if as_json:
        print_json(_document(cell, folder, found))
    else:
        _print(cell, folder, found)
    return ExitCode.DONE if found.held else ExitCode.FAILED


def _cell(grid: Grid, chosen: str | None) -> Cell:
    if chosen is None:
        return grid.cells[0]
    cell = next((c for c in grid.cells if c.id == chosen), None)
    if cell is None:
        raise UsageProblem(
            f"the grid has no cell {chosen}; experiment run GRID --out DIR --dry-run --json lists them"
        )
    return cell


def _document(cell: Cell, folder: Path, found: Comparison) -> dict[str, object]:
    return {
        "cell": cell.id,
        "settings": cell.settings(),
        "folder": str(folder),
        "held": found.held,
        "audit": found.audit_held,
        "rounds": [
            {
                "round": r.round,
                "equal": r.equal,
                "memory": r.memory,
                "network": sorted(set(r.network)),
                "not_delivered": dict(r.verdicts),
            }
            for r in found.rounds
        ],
    }


def _print(cell: Cell, folder: Path, found: Comparison) -> None:
    console = Console(highlight=False)
    table = Table("round", "model in memory", "in the network", "not delivered", title=f"Cell {cell.id}")
    for r in found.rounds:
        absent = ", ".join(f"{member}: {verdict}" for member, verdict in r.verdicts) or "–"
        table.add_row(
            str(r.round), r.memory, "the same" if r.equal else " ".join(sorted(set(r.network))), absent
        )
    console.print(table)
    console.print(f"audit: {'holds' if found.audit_held else 'does not hold'}")
    if not found.audit_held:
        console.print(found.audit, markup=False)
    console.print(f"The federation's chain, homes and logs are in {folder}", soft_wrap=True)
