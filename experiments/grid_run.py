"""Running a grid into a folder: what is done stays done, whatever interrupts it.

grid.toml          the specification, as it was given
cells/ID.json      a finished cell (and ID.parquet: its evaluations)
results.jsonl      all cells in the grid's order, and results.parquet; written when the grid is complete
times.jsonl        how long each cell took; not part of the results
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from folkmoot.experiments.cells import Cell
from folkmoot.experiments.results import (
    CellResult,
    json_line,
    parquet,
    read_result,
    result_path,
    write_result,
)
from folkmoot.experiments.specification import Grid
from folkmoot.experiments.workers import Finished, Workers
from folkmoot.node.errors import FileProblem
from folkmoot.node.home import replace_file

__all__ = ["FolderBusy", "GridOutcome", "pending", "run_grid"]


class FolderBusy(FileProblem):
    """Another run writes into this folder."""


@dataclass(frozen=True, slots=True)
class GridOutcome:
    """What became of a grid: its results in its order, and the cells that failed with the reason."""

    results: tuple[CellResult, ...]
    failures: tuple[tuple[Cell, str], ...]


def pending(grid: Grid, folder: Path) -> list[Cell]:
    """The cells of the grid that the folder does not have yet."""
    return [cell for cell in grid.cells if not result_path(folder, cell.id).exists()]


def run_grid(
    grid: Grid,
    source: bytes,
    folder: Path,
    workers: Workers,
    finished: Callable[[Finished], None] = lambda done: None,
    advance: Callable[[str, int], None] = lambda cell, rounds: None,
    *,
    collect: bool = True,
) -> GridOutcome:
    """Run what is missing. `source`: the grid's file, kept beside the results. With `collect` a complete grid
    is also written as a whole.

    Raises FolderBusy, FileProblem, and what the workers raise.
    """
    with _claimed(folder):
        try:
            replace_file(folder / "grid.toml", source, mode=0o644)
            failures = []
            missing = pending(grid, folder)
            for done in workers.run(missing, advance) if missing else ():
                if done.result is None:
                    failures.append((done.cell, done.failure))
                else:
                    write_result(folder, done.result)
                    _note_time(folder, done)
                finished(done)
            return GridOutcome(_collect(grid, folder, complete=collect and not failures), tuple(failures))
        except OSError as error:
            raise FileProblem(
                f"cannot write into {folder}: {error.strerror or error}; "
                "finished cells are kept: run the same command again"
            ) from None


def _collect(grid: Grid, folder: Path, *, complete: bool) -> tuple[CellResult, ...]:
    paths = [result_path(folder, cell.id) for cell in grid.cells]
    results = tuple(read_result(path) for path in paths if path.exists())
    if complete:
        replace_file(folder / "results.jsonl", b"".join(json_line(r) for r in results), mode=0o644)
        replace_file(folder / "results.parquet", parquet(results), mode=0o644)
    return results


def _note_time(folder: Path, done: Finished) -> None:
    with (folder / "times.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"cell": done.cell.id, "seconds": round(done.seconds, 3)}) + "\n")


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises FolderBusy, FileProblem."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise FileProblem(f"cannot write into {folder}: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderBusy(f"another run writes into {folder}; wait for it or name another --out") from None
        yield
