"""Who runs the cells: processes on this machine, or a Ray cluster. Both answer in the order of finishing.

A worker is told a cell and gives back its result; it writes nothing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from folkmoot.experiments.cells import Cell
from folkmoot.experiments.results import CellResult
from folkmoot.experiments.specification import import_plugins
from folkmoot.node.datasets import Dataset, load_dataset
from folkmoot.node.errors import ExitCode, NodeError

__all__ = ["Finished", "LocalWorkers", "RayMissing", "RayWorkers", "WorkerDied", "Workers"]

POLL: Final = 0.5
ANSWER: Final = 5.0
"""Seconds that a cluster has to take a connection."""
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Advance = Callable[[str, int], None]
"""Hears (cell id, rounds done) of running cells, where the workers tell."""


class WorkerDied(NodeError):
    """A worker process ended in the middle of a cell."""


class RayMissing(NodeError):
    """Ray is not installed, or the cluster does not answer."""

    exit_code = ExitCode.UNREACHABLE


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell's end: its result, or why there is none."""

    cell: Cell
    result: CellResult | None
    seconds: float
    failure: str = ""


class Workers(Protocol):
    """Runs cells at the same time, between __enter__ and __exit__."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, cells: Sequence[Cell], advance: Advance) -> Iterator[Finished]:
        """Every cell once, in the order in which they finish."""


@cache
def dataset(name: str, folder: Path | None) -> Dataset:
    """The data set, read once in each process."""
    return load_dataset(name, folder)


def work(cell: Cell, folder: Path | None, told: Advance | None = None) -> Finished:
    """Run one cell here; a failure of the cell is an answer too."""
    # PyTorch takes a second to load, and only workers need it.
    from folkmoot.experiments.federation import run_cell

    started = time.monotonic()
    try:
        result = run_cell(
            cell,
            dataset(cell.data, folder),
            lambda evaluation: told(cell.id, evaluation.round) if told else None,
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Finished(cell, None, time.monotonic() - started, reason)
    return Finished(cell, result, time.monotonic() - started)


class LocalWorkers:
    """Processes of this machine, one thread each. They end when their parent does, however it ends.

    Use as a context manager.
    """

    def __init__(self, count: int, folder: Path | None, plugins: Sequence[str] = ()) -> None:
        self._count, self._folder, self._plugins = count, folder, plugins

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._news: Any = context.Queue()
        # NumPy's libraries read these when they are loaded, in the children.
        os.environ.update({name: os.environ.get(name, "1") for name in _ONE_THREAD})
        self._pool = ProcessPoolExecutor(self._count, context, _begin, (self._news, self._plugins))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    def run(self, cells: Sequence[Cell], advance: Advance) -> Iterator[Finished]:
        """Raises WorkerDied when a worker was killed; what had been finished was given before."""
        waiting = {self._pool.submit(_work_and_tell, cell, self._folder) for cell in cells}
        try:
            while waiting:
                done, waiting = wait(waiting, POLL, FIRST_COMPLETED)
                _drain(self._news, advance)
                # What is finished comes before the news that a worker died.
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    yield future.result()
        except BrokenProcessPool:
            raise WorkerDied(
                "a worker process was killed (out of memory?); finished cells are kept: run the same command "
                "again, with fewer --workers"
            ) from None


def _drain(news: Any, advance: Advance) -> None:
    while True:
        try:
            advance(*news.get_nowait())
        except queue.Empty:
            return


_news: Any = None


def _begin(news: Any, plugins: Sequence[str]) -> None:
    """First thing in a worker: leave the keyboard to the parent, and do not outlive it."""
    global _news
    _news = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    import_plugins(plugins)


def _work_and_tell(cell: Cell, folder: Path | None) -> Finished:
    return work(cell, folder, lambda *news: _news.put(news))


class RayWorkers:
    """The processors of a Ray cluster, where the same version of folkmoot is installed on every machine.

    address: as `ray.init` takes it, "auto" for the cluster of this machine, or "local" to start one here.
    Use as a context manager.
    """

    def __init__(self, address: str, folder: Path | None, plugins: Sequence[str] = ()) -> None:
        self._address, self._folder, self._plugins = address, folder, plugins

    def __enter__(self) -> Self:
        """Raises RayMissing."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError:
            raise RayMissing(
                "Ray is not installed; pip install 'folkmoot[ray]', or leave --ray out"
            ) from None
        self._require_answer()
        options: dict[str, Any] = {"include_dashboard": False} if self._address == "local" else {}
        try:
            ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RayMissing(f"no Ray cluster at {self._address!r}: {error}") from None
        self._ray = ray
        return self

    def _require_answer(self) -> None:
        """Ray itself tries a dead address for minutes. Raises RayMissing."""
        host, colon, port = self._address.removeprefix("ray://").rpartition(":")
        if not colon:
            if self._address not in ("auto", "local"):
                raise RayMissing(
                    f'the address of a Ray cluster is "auto", "local" or host:port: {self._address!r}'
                )
            return
        try:
            socket.create_connection((host, int(port)), ANSWER).close()
        except (OSError, ValueError, OverflowError) as error:
            raise RayMissing(f"no Ray cluster at {self._address}: {error}") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def run(self, cells: Sequence[Cell], advance: Advance) -> Iterator[Finished]:
        """A task that fails because its machine is lost is tried three times more."""
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=3)(_ray_work)
        waiting = [task.remote(cell, self._folder, self._plugins) for cell in cells]
        while waiting:
            done, waiting = ray.wait(waiting, timeout=POLL)
            for reference in done:
                yield ray.get(reference)


def _ray_work(cell: Cell, folder: Path | None, plugins: Sequence[str]) -> Finished:
    import_plugins(plugins)
    return work(cell, folder)
