"""Every rule but SMEA over encoded files far larger than memory, each in a process of its own.

The parent writes n files and removes them afterwards; each child prints one line of JSON with its seconds
and the most resident memory that it ever had, which must stay below 1 GB.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from contests import CONTESTS, ROUND_SEED, Contest, make_case, make_facts, make_layout
from resources import peak_bytes
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from folkmoot.aggregation import AggregationError, Lattice, aggregate_values, encode_integers, update_size

MOST_RESIDENT = 1_000_000_000
"""Bytes."""
_PATTERN = 1 << 16


@dataclass(frozen=True, slots=True)
class Stream:
    """n files of `values` integers in `folder`, and the rule that reads them."""

    folder: str
    label: str
    n: int
    values: int
    bits: int
    exponent: int
    radius: float
    threads: int
    backend: str
    seed: int


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a child reports: seconds, bytes resident at the most, or why it has neither."""

    label: str
    seconds: float | None
    resident: int | None
    obstacle: str | None

    @property
    def passes(self) -> bool:
        return self.resident is not None and self.resident < MOST_RESIDENT


def stream(
    contests: list[Contest],
    folder: Path,
    n: int,
    values: int,
    *,
    bits: int,
    threads: int,
    backend: str,
    seed: int,
) -> list[Streamed]:
    """Write the files, run every rule but SMEA over them, remove them; progress goes to stderr."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = n * update_size(make_layout(values), bits), shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise SystemExit(f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    chosen = [contest for contest in contests if contest.label != "smea"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console) as progress:
        try:
            files = _write(Stream(str(folder), "", n, values, bits, 0, 0.0, threads, backend, seed), progress)
            found = []
            task = progress.add_task("aggregating", total=len(chosen))
            for contest in chosen:
                progress.update(task, description=contest.label)
                found.append(_in_child(replace(files, label=contest.label)))
                progress.console.print(_line(found[-1]))
                progress.advance(task)
            return found
        finally:
            for index in range(n):
                _file(folder, index).unlink(missing_ok=True)


def _write(files: Stream, progress: Progress) -> Stream:
    """The files on disk, and the same description with the exponent and the updates' median norm."""
    pattern = make_case(files.n, min(_PATTERN, files.values), files.bits, files.seed, tensors=1)
    layout, folder = make_layout(files.values), Path(files.folder)
    exponents = (max(pattern.lattice.exponents),) * len(layout.tensors)
    lattice = Lattice(files.bits, exponents)
    title = f"writing {files.n} files of {files.values:,} values"
    for index in progress.track(range(files.n), description=title):
        integers = np.resize(pattern.integers[index], files.values)
        _file(folder, index).write_bytes(encode_integers(integers, layout, lattice))
    radius = pattern.facts.radius * (files.values / pattern.layout.size) ** 0.5
    return replace(files, exponent=exponents[0], radius=radius)


def _file(folder: Path, index: int) -> Path:
    return folder / f"update-{index:03}.fmup"


def _in_child(question: Stream) -> Streamed:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(question))],
        capture_output=True, text=True, check=False, timeout=4 * 3600,
    )  # fmt: skip
    if done.returncode == 0:
        return Streamed(**json.loads(done.stdout.splitlines()[-1]))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Streamed(question.label, None, None, f"failed with {done.returncode}: {last}")


def answer(question: Stream) -> Streamed:
    """Aggregate once, in this process."""
    facts = make_facts(question.n, question.radius, question.seed)
    contest, layout = CONTESTS[question.label], make_layout(question.values)
    lattice = Lattice(question.bits, (question.exponent,) * len(layout.tensors))
    sources = [_file(Path(question.folder), index) for index in range(question.n)]
    begin = time.perf_counter()
    try:
        aggregate_values(
            sources, layout, lattice, contest.spec(facts),
            weights=facts.weights if contest.weighted else None, seed=ROUND_SEED,
            backend=question.backend, threads=question.threads,
        )  # fmt: skip
    except AggregationError as error:
        return Streamed(question.label, None, peak_bytes(), f"refused: {type(error).__name__}: {error}")
    return Streamed(question.label, time.perf_counter() - begin, peak_bytes(), None)


def _line(found: Streamed) -> str:
    if found.seconds is None or found.resident is None:
        return f"{found.label}: {found.obstacle}"
    verdict = "" if found.passes else ", over the limit"
    return f"{found.label}: {found.seconds:.1f} s, {found.resident / 1e6:.0f} MB resident{verdict}"


def streaming_table(found: list[Streamed], n: int, values: int, bits: int) -> Table:
    """One row for each rule."""
    title = f"{n} files of {values:,} int{bits} ({n * values * bits // 8 / 1e9:.3g} GB)"
    table = Table(title=title)
    table.add_column("rule")
    for heading in ("seconds", "peak resident MB", "under 1 GB"):
        table.add_column(heading, justify="right")
    for entry in found:
        seconds = entry.obstacle if entry.seconds is None else f"{entry.seconds:.1f}"
        resident = "" if entry.resident is None else f"{entry.resident / 1e6:.0f}"
        table.add_row(entry.label, seconds, resident, "yes" if entry.passes and not entry.obstacle else "no")
    return table


if __name__ == "__main__":
    print(json.dumps(asdict(answer(Stream(**json.loads(sys.argv[1]))))))
