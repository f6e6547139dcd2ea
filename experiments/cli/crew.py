"""Who runs a command's cells: the options that name them, and the workers that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import click

from folkmoot.aggregation.interface import processors
from folkmoot.experiments.cells import Cell
from folkmoot.experiments.specification import Grid
from folkmoot.experiments.workers import LocalWorkers, RayWorkers, Workers
from folkmoot.node.datasets import load_dataset

__all__ = ["crew_options", "hire", "refuse_what_does_not_fit"]


def crew_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --workers (`workers`) and --ray (`address`)."""
    ray = click.option(
        "--ray", "address", metavar="ADDRESS", help='A Ray cluster instead: "auto", "local" or host:port.'
    )
    workers = click.option(
        "--workers", type=click.IntRange(1, 1024), help="Processes; all processors if left out."
    )
    return workers(ray(command))


def hire(grid: Grid, workers: int | None, address: str | None) -> Workers:
    """Processes of this machine, or with an address a Ray cluster."""
    if address is None:
        return LocalWorkers(workers or processors(), grid.folder, grid.plugins)
    return RayWorkers(address, grid.folder, grid.plugins)


def refuse_what_does_not_fit(grid: Grid, cells: Sequence[Cell]) -> None:
    """Look at the data before anything runs. Raises ImpossibleCell, DatasetError."""
    # Loads PyTorch.
    from folkmoot.experiments.fit import require_fit

    require_fit(cells, cache(lambda name: load_dataset(name, grid.folder)))
