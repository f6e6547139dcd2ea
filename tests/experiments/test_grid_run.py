"""A grid in a folder: what is done stays done, and the folder's bytes do not tell how it was done."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from folkmoot.experiments.cells import Cell
from folkmoot.experiments.grid_run import FolderBusy, pending, run_grid
from folkmoot.experiments.results import (
    CellResult,
    ResultDamaged,
    json_line,
    read_result,
    read_results,
    result_path,
    write_result,
)
from folkmoot.experiments.specification import Grid, grid_of
from folkmoot.experiments.workers import LocalWorkers, Workers
from folkmoot.node.errors import ExitCode, FileProblem, exit_code_of

DEADLINE = 60.0


@pytest.fixture
def grid(grid_text: str) -> Grid:
    return grid_of(tomllib.loads(grid_text))


@pytest.fixture(scope="module")
def whole(grid_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole grid, from two workers that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with LocalWorkers(2, None) as workers:
        outcome = run_grid(grid_of(tomllib.loads(grid_text)), grid_text.encode(), folder, workers)
    assert outcome.failures == ()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All that the same grid always gives: nothing about times, locks and interruptions."""
    names = ["grid.toml", "results.jsonl", "results.parquet", "cells/*.json", "cells/*.parquet"]
    paths = [path for name in names for path in folder.glob(name)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def result(cell: Cell) -> CellResult:
    """Made up, so that no member need train."""
    return CellResult(cell.id, cell.settings(), (), {}, {}, 0, 0)


def test_results_stand_in_the_order_of_the_grid(whole: Path, grid: Grid) -> None:
    lines = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [line["cell"] for line in lines] == [cell.id for cell in grid.cells]
    assert [line["settings"] for line in lines] == [cell.settings() for cell in grid.cells]
    table = pq.read_table(whole / "results.parquet").to_pylist()
    assert [row["cell"] for row in table if row["round"] == 0] == [cell.id for cell in grid.cells]
    assert [row["round"] for row in table[:3]] == [0, 10, 20]


def test_every_cell_has_a_document_and_a_table(whole: Path, grid: Grid) -> None:
    found = contents(whole)
    for cell in grid.cells:
        assert found[f"cells/{cell.id}.json"] in found["results.jsonl"]
        assert f"cells/{cell.id}.parquet" in found


def test_the_grids_file_is_kept_as_it_was_given(whole: Path, grid_text: str) -> None:
    assert (whole / "grid.toml").read_text() == grid_text


def test_times_stand_beside_the_results_and_not_in_them(whole: Path, grid: Grid) -> None:
    times = [json.loads(line) for line in (whole / "times.jsonl").read_text().splitlines()]
    assert {line["cell"] for line in times} == {cell.id for cell in grid.cells}
    assert all(line["seconds"] >= 0 for line in times)
    assert b"seconds" not in b"".join(contents(whole).values())


def test_a_second_run_runs_nothing_and_changes_no_byte(
    whole: Path, grid: Grid, grid_text: str, here: Any
) -> None:
    before = contents(whole) | {"times": (whole / "times.jsonl").read_bytes()}
    outcome = run_grid(grid, grid_text.encode(), whole, here)
    assert here.ran == []
    assert len(outcome.results) == len(grid.cells)
    assert contents(whole) | {"times": (whole / "times.jsonl").read_bytes()} == before


def test_workers_in_other_processes_give_the_bytes_of_this_one(
    whole: Path, grid: Grid, grid_text: str, here: Any, tmp_path: Path
) -> None:
    run_grid(grid, grid_text.encode(), tmp_path, here)
    assert contents(tmp_path) == contents(whole)


def test_only_missing_cells_are_run(
    whole: Path, grid: Grid, grid_text: str, here: Any, tmp_path: Path
) -> None:
    missing = [grid.cells[2].id, grid.cells[5].id]
    for one in read_results(whole):
        if one.id not in missing:
            write_result(tmp_path, one)
    assert [cell.id for cell in pending(grid, tmp_path)] == missing
    run_grid(grid, grid_text.encode(), tmp_path, here)
    assert here.ran == missing
    assert contents(tmp_path) == contents(whole)


def test_a_table_without_its_document_is_an_unfinished_cell(whole: Path, grid: Grid, tmp_path: Path) -> None:
    for one in read_results(whole):
        write_result(tmp_path, one)
    result_path(tmp_path, grid.cells[3].id).unlink()
    assert pending(grid, tmp_path) == [grid.cells[3]]


def test_a_larger_grid_takes_over_the_cells_of_a_smaller_one(
    whole: Path, grid_text: str, here: Any, tmp_path: Path
) -> None:
    for one in read_results(whole):
        write_result(tmp_path, one)
    larger = grid_of({**tomllib.loads(grid_text), "seeds": [1, 2, 3]})
    run_grid(larger, b"", tmp_path, here)
    assert here.ran == [cell.id for cell in larger.cells if cell.seed == 3]


def test_one_worker_gives_the_bytes_of_two(whole: Path, grid: Grid, grid_text: str, tmp_path: Path) -> None:
    with LocalWorkers(1, None) as workers:
        run_grid(grid, grid_text.encode(), tmp_path, workers)
    assert contents(tmp_path) == contents(whole)


def test_what_a_file_keeps_is_what_was_found(whole: Path) -> None:
    for one in read_results(whole):
        assert json_line(one) == result_path(whole, one.id).read_bytes()
        assert len(one.evaluations) == 3
        assert read_result(result_path(whole, one.id)) == one


def test_a_cell_that_fails_is_told_and_the_others_are_kept(
    document: Callable[..., dict[str, Any]], here: Any, tmp_path: Path
) -> None:
    grid = grid_of(document(model={"name": ["linear", "lenet"]}, seeds=[1, 2]))
    outcome = run_grid(grid, b"", tmp_path, here)
    assert [cell.model.name for cell, _ in outcome.failures] == ["lenet", "lenet"]
    assert "ImpossibleCell: model 'lenet'" in outcome.failures[0][1]
    assert [found.id for found in outcome.results] == [
        cell.id for cell in grid.cells if cell.model.name == "linear"
    ]
    assert not (tmp_path / "results.jsonl").exists()


def test_a_cell_that_failed_is_tried_again(
    document: Callable[..., dict[str, Any]], here: Any, tmp_path: Path
) -> None:
    grid = grid_of(document(model={"name": ["linear", "lenet"]}))
    run_grid(grid, b"", tmp_path, here)
    here.ran.clear()
    run_grid(grid, b"", tmp_path, here)
    assert here.ran == [cell.id for cell in grid.cells if cell.model.name == "lenet"]


def test_a_run_that_does_not_collect_writes_cells_only(
    document: Callable[..., dict[str, Any]], here: Any, tmp_path: Path
) -> None:
    grid = grid_of(document())
    outcome = run_grid(grid, b"", tmp_path, here, collect=False)
    assert [found.id for found in outcome.results] == [cell.id for cell in grid.cells]
    assert not (tmp_path / "results.jsonl").exists()


def test_a_second_run_at_the_same_time_is_refused(
    document: Callable[..., dict[str, Any]], here: Any, tmp_path: Path
) -> None:
    grid, refused = grid_of(document()), []

    def meanwhile(_: object) -> None:
        with pytest.raises(FolderBusy, match="wait for it or name another --out") as refusal:
            run_grid(grid, b"", tmp_path, here)
        refused.append(refusal.value)

    run_grid(grid, b"", tmp_path, here, meanwhile)
    assert [exit_code_of(error) for error in refused] == [ExitCode.USAGE]
    run_grid(grid, b"", tmp_path, here)


def test_a_folder_that_cannot_be_written_is_named(
    document: Callable[..., dict[str, Any]], here: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileProblem, match=r"cannot write into .*file/inside"):
        run_grid(grid_of(document()), b"", tmp_path / "file" / "inside", here)
    assert here.ran == []


def test_a_folder_that_cannot_be_written_any_more_keeps_what_is_finished(
    document: Callable[..., dict[str, Any]], here: Any, tmp_path: Path
) -> None:
    grid = grid_of(document(seeds=[1, 2]))

    def block(_: object) -> None:
        second = result_path(tmp_path, grid.cells[1].id)
        second.mkdir()

    with pytest.raises(FileProblem, match="finished cells are kept: run the same command again"):
        run_grid(grid, b"", tmp_path, here, block)
    assert read_result(result_path(tmp_path, grid.cells[0].id)).id == grid.cells[0].id


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".json", b""),
        (".json", b"{"),
        (".json", b"[]"),
        (".json", b"\xff\xfe"),
        (".json", b'{"cell": "x"}'),
        (".parquet", b""),
        (".parquet", b"PAR1 and nothing more"),
        (".parquet", None),
    ],
)
def test_a_damaged_cell_is_named_with_the_way_out(
    whole: Path, grid: Grid, here: Any, tmp_path: Path, suffix: str, content: bytes | None
) -> None:
    for one in read_results(whole):
        write_result(tmp_path, one)
    damaged = result_path(tmp_path, grid.cells[4].id)
    if content is None:
        damaged.with_suffix(suffix).unlink()
    else:
        damaged.with_suffix(suffix).write_bytes(content)
    with pytest.raises(ResultDamaged, match=rf"{damaged.name} is damaged .* remove it and run"):
        run_grid(grid, b"", tmp_path, here)
    damaged.unlink()
    run_grid(grid, b"", tmp_path, here)
    assert here.ran == [grid.cells[4].id]


def children(process: int) -> list[int]:
    """Of a process, by the kernel's word."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in found.split()]


def ended(process: int, seconds: float) -> bool:
    """Whether a process that is no child of ours ends in time."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def command(grid: Path, out: Path) -> list[str]:
    arguments = ["experiment", "run", str(grid), "--out", str(out), "--workers", "2"]
    return [sys.executable, "-m", "folkmoot.node.cli", *arguments]


def environment() -> Mapping[str, str]:
    return {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_bytes_of_one_that_was_not(
    grid_text: str, tmp_path: Path, here: Workers
) -> None:
    # So long that a few cells are done and others are at work when the run is killed.
    text = grid_text.replace("rounds = 20", "rounds = 120")
    (tmp_path / "grid.toml").write_text(text)
    killed = tmp_path / "killed"
    with subprocess.Popen(
        command(tmp_path / "grid.toml", killed), env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        last = time.monotonic() + DEADLINE
        while len(list(killed.glob("cells/*.json"))) < 2:
            assert time.monotonic() < last
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.02)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
    done = {path.name: path.read_bytes() for path in killed.glob("cells/*.json")}
    assert len(workers) >= 2
    orphans = [worker for worker in workers if not ended(worker, 10)]
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
    assert orphans == []
    assert 2 <= len(done) < 8
    resumed = subprocess.run(
        command(tmp_path / "grid.toml", killed), env=environment(), capture_output=True, text=True,
        timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    run_grid(grid_of(tomllib.loads(text)), text.encode(), tmp_path / "whole", here)
    assert contents(killed) == contents(tmp_path / "whole")
    assert len(contents(killed)) == 3 + 2 * 8
    assert {name: (killed / "cells" / name).read_bytes() for name in done} == done
    # Whoever was finished before was not run again.
    assert len((killed / "times.jsonl").read_text().splitlines()) == 8
