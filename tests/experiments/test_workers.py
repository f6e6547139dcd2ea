"""Workers run every cell once, answer in the order of finishing, and a death among them is told."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from folkmoot.experiments.grid_run import run_grid
from folkmoot.experiments.specification import Grid, grid_of
from folkmoot.experiments.workers import LocalWorkers, RayMissing, RayWorkers, WorkerDied, work
from folkmoot.node.errors import ExitCode, exit_code_of

Document = Callable[..., dict[str, Any]]


@pytest.fixture
def grid(document: Document) -> Grid:
    """A cell that takes no time, two that fail, another that takes none."""
    return grid_of(document(model={"name": ["linear", "lenet"]}, seeds=[1, 2]))


def test_a_failure_of_a_cell_is_an_answer(grid: Grid) -> None:
    found = [work(cell, None) for cell in grid.cells]
    assert [answer.cell for answer in found] == list(grid.cells)
    assert [answer.result is None for answer in found] == [False, False, True, True]
    assert [bool(answer.failure) for answer in found] == [False, False, True, True]
    assert "needs images" in found[2].failure


def test_data_that_is_not_there_is_a_failure_of_the_cell(document: Document, tmp_path: Path) -> None:
    (cell,) = grid_of(document(data={"set": "mnist"})).cells
    assert work(cell, None).failure.startswith("DatasetMissing: mnist needs a folder")
    assert work(cell, tmp_path).failure.startswith("DatasetMissing")


def test_a_worker_tells_of_every_evaluation(document: Document) -> None:
    (cell,) = grid_of(document(federation={"rounds": 5, "evaluate_every": 2})).cells
    told: list[tuple[str, int]] = []
    work(cell, None, lambda name, rounds: told.append((name, rounds)))
    assert told == [(cell.id, rounds) for rounds in (0, 2, 4, 5)]


@pytest.mark.slow
def test_processes_answer_for_every_cell_once_and_leave_none_behind(grid: Grid) -> None:
    told: list[tuple[str, int]] = []
    before = multiprocessing.active_children()
    with LocalWorkers(2, None) as workers:
        found = list(workers.run(grid.cells, lambda name, rounds: told.append((name, rounds))))
        assert all(process.pid != os.getpid() for process in multiprocessing.active_children())
        started = [p for p in multiprocessing.active_children() if p not in before]
    assert sorted(answer.cell.id for answer in found) == sorted(cell.id for cell in grid.cells)
    assert sum(answer.result is not None for answer in found) == 2
    assert {name for name, _ in told} <= {cell.id for cell in grid.cells}
    assert started
    for process in started:
        process.join(10)
        assert not process.is_alive()


def test_a_worker_that_is_killed_is_told_and_what_was_finished_is_kept(
    document: Document, tmp_path: Path
) -> None:
    rounds = {"rounds": 1}, {"rounds": 100_000, "evaluate_every": 1}
    quick, endless = (grid_of(document(federation=changes)).cells[0] for changes in rounds)
    before = multiprocessing.active_children()

    def kill(cell: str, done: int) -> None:
        if cell == endless.id and done > 2:
            for process in multiprocessing.active_children():
                if process not in before:
                    process.kill()

    with (
        LocalWorkers(1, None) as workers,
        pytest.raises(WorkerDied, match="run the same command again") as died,
    ):
        run_grid(Grid("two", (quick, endless), None), b"", tmp_path, workers, advance=kill)
    assert exit_code_of(died.value) == ExitCode.FAILED
    assert [path.stem for path in tmp_path.glob("cells/*.json")] == [quick.id]


def test_workers_end_at_once_when_the_run_is_left(document: Document) -> None:
    (endless,) = grid_of(document(federation={"rounds": 100_000, "evaluate_every": 1})).cells
    before = multiprocessing.active_children()

    def stop(cell: str, done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), LocalWorkers(1, None) as workers:
        list(workers.run([endless], stop))
    left = [process for process in multiprocessing.active_children() if process not in before]
    for process in left:
        process.join(10)
    alive = [process for process in left if process.is_alive()]
    for process in alive:
        process.kill()
    assert alive == []


def test_a_plugin_that_cannot_be_imported_stops_the_workers(document: Document) -> None:
    cells = grid_of(document()).cells
    with LocalWorkers(1, None, ["no_such_plugin_anywhere"]) as workers, pytest.raises(WorkerDied):
        list(workers.run(cells, lambda name, rounds: None))


@pytest.mark.slow
def test_a_ray_cluster_gives_the_bytes_of_this_machine(document: Document, here: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    grid = grid_of(document(seeds=[1, 2]))
    with RayWorkers("local", None) as workers:
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        run_grid(grid, b"", tmp_path / "ray", workers)
    run_grid(grid, b"", tmp_path / "here", here)
    for name in ("results.jsonl", "results.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_an_address_that_is_none_is_told_without_asking_ray() -> None:
    pytest.importorskip("ray")
    with pytest.raises(RayMissing, match='"auto", "local" or host:port') as missing, RayWorkers("here", None):
        pass
    assert exit_code_of(missing.value) == ExitCode.UNREACHABLE


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:x", "ray://127.0.0.1:1"])
def test_a_ray_cluster_that_does_not_answer_is_told_at_once(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(RayMissing, match="no Ray cluster at"), RayWorkers(address, None):
        pass
