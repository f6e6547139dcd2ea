"""How fast and how small the aggregation core is, beside ByzFL and Flower, interleaved in one run.

    python benchmarks/aggregation.py --json found.json --picture found.png
    python benchmarks/aggregation.py --quick                       # seconds: does everything work?
    python benchmarks/aggregation.py --n 50 --d 1e6 --rules median krum nnm+trimmed-mean
    python benchmarks/aggregation.py --streaming FOLDER --values 1e8 --n 50      # 10 GB of files

Sizes: every n with every d, but d of 10 million and more only for n of 20 and less. f = n // 5 (Bulyan:
(n - 3) // 4). Ours goes from encoded updates in memory to the float32 aggregate; the peers get one float32
matrix (Flower a list of its rows), already in their type. All use the same number of threads. What is not
timed: imports, compiling (the first run, told apart), and copies for peers that write into their input.

Columns, in milliseconds (medians):
- "ours, B": backend B, int16 (or --bits) to float32. The ratio takes the first of --backends.
- "ByzFL PyTorch", "ByzFL NumPy", "Flower": their functions. "–": no such rule. A number in brackets: it
  did not run, and the note says why (memory, subsets, or longer than --longest by its time on the smaller
  model); it enters no ratio. "*": one run, which took longer than the budget.
- ratio: the fastest peer's time over ours.
- must read MB: the bytes of updates that the rule reads at least, over all its passes.
- of copy speed: these bytes over our time, as a share of the bandwidth that a plain copy reaches (STREAM).
  Above 100 % the updates stayed in the cache.
- differs: relative Euclidean distance of our result from the fastest peer's. Large where the peer draws at
  random (CAF, SMEA, bucketing), or counts Krum's neighbours otherwise (Flower leaves out 2, ByzFL and ours
  here 1). A few thousandths in Meamed and Bulyan, where the lattice makes ties of values almost equally far
  from the median.

Peak memory is the kernel's own mark in a fresh process for each rule and contender, the result included; ours
at --memory's size, the peers at a tenth of its values, since theirs grows with the input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from contenders import PEERS, field, load_peers, our_name
from contests import Case, Contest, make_case, select
from memory import Answer, Question, measure_memory
from race import PAUSE, Forecast, Outcome, race
from ratio_picture import draw_ratios
from resources import bandwidth, limit_libraries, processor, versions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from streaming import stream, streaming_table
from tables import Encoding, document, memory_table, size_table, summarize

from folkmoot.aggregation import quantize

LARGE, FEW = 10_000_000, 20
"""Models of LARGE values and more are measured with at most FEW members."""


def _count(text: str) -> int:
    value = float(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is no positive whole number")
    return int(value)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes, two runs, memory of two rules")
    add("--n", type=_count, nargs="+", help="numbers of members (10 50 100; streaming 50)")
    add("--d", type=_count, nargs="+", help="values of a model (1e5 1e6 1e7)")
    add("--rules", nargs="+", help="labels without blanks, such as median or nnm+trimmed-mean (all)")
    add("--backends", nargs="+", default=["auto", "numpy"], help="ours; the ratio takes the first")
    add("--bits", type=int, choices=(8, 16), default=16)
    add("--threads", type=_count, default=2)
    add("--repeat", type=_count, help="runs that count, for each contender (5)")
    add("--budget", type=float, default=20.0, metavar="SECONDS", help="for each contender and contest (20)")
    add("--longest", type=float, default=300.0, metavar="SECONDS", help="a peer's one run, foreseen (300)")
    add("--memory", type=_count, nargs=2, metavar=("N", "D"), help="size for peak memory (50 1e7)")
    add("--no-memory", action="store_true")
    add("--seed", type=int, default=1)
    add("--json", type=Path, metavar="FILE")
    add("--picture", type=Path, metavar="FILE.png")
    add("--streaming", type=Path, metavar="FOLDER", help="aggregate from files written there, nothing else")
    add("--values", type=_count, default=100_000_000, help="values of a streamed file (1e8)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.n, options.d = options.n or [10], options.d or [2000, 20_000]
        options.repeat, options.memory = options.repeat or 2, options.memory or [10, 20_000]
    options.d, options.repeat = options.d or [100_000, 1_000_000, LARGE], options.repeat or 5
    options.memory = options.memory or [50, LARGE]
    options.n = options.n or ([50] if options.streaming else [10, 50, 100])
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or with --streaming the files; 1 when a streamed rule fails its limit."""
    options = _options(arguments)
    out, contests = Console(highlight=False), select(options.rules)
    if not out.is_terminal:
        out = Console(highlight=False, width=200)
    if options.streaming:
        return _stream(options, contests, out)
    limit_libraries(options.threads)
    found: dict[str, Any] = {
        "processor": processor(),
        "versions": versions(),
        "bandwidth": bandwidth(options.threads, 1 << 20 if options.quick else 1 << 25),
        "settings": {
            name: getattr(options, name)
            for name in ("bits", "threads", "repeat", "budget", "longest", "seed", "backends")
        },
    }
    _print_machine(found, out)
    outcomes, encodings = _race_all(options, contests, found["bandwidth"]["copy"], out)
    summary = summarize(outcomes)
    _save(options, {**found, "results": document(outcomes), "summary": asdict(summary)})
    answers = [] if options.no_memory else _memory(options, contests)
    if answers:
        out.print(memory_table(answers))
    _print_summary(outcomes, out)
    found |= {
        "encoding": [asdict(encoding) for encoding in encodings],
        "results": document(outcomes),
        "memory": [{**asdict(answer), "share": answer.share} for answer in answers],
        "summary": asdict(summary),
    }
    _save(options, found)
    if options.picture:
        draw_ratios(outcomes, options.picture, f"{found['processor']}; int{options.bits}")
    return 0


def _stream(options: argparse.Namespace, contests: list[Contest], out: Console) -> int:
    if len(options.n) != 1:
        raise SystemExit("--streaming takes one --n")
    found = stream(
        contests, options.streaming, options.n[0], options.values,
        bits=options.bits, threads=options.threads, backend=options.backends[0], seed=options.seed,
    )  # fmt: skip
    out.print(streaming_table(found, options.n[0], options.values, options.bits))
    _save(options, {"processor": processor(), "streaming": [asdict(entry) for entry in found]})
    return 0 if all(entry.passes and entry.obstacle is None for entry in found) else 1


def _race_all(
    options: argparse.Namespace, contests: list[Contest], copy: float, out: Console
) -> tuple[list[Outcome], list[Encoding]]:
    sizes = [(n, d) for n in sorted(options.n) for d in sorted(options.d) if d < LARGE or n <= FEW]
    peers, forecast = load_peers(), Forecast(options.longest)
    outcomes: list[Outcome] = []
    encodings: list[Encoding] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        task = progress.add_task("", total=len(sizes) * len(contests))
        for n, values in sizes:
            progress.update(task, description=f"n = {n}, d = {values:,}: making updates")
            case = make_case(n, values, options.bits, options.seed)
            encodings.append(_encode(case))
            here = []
            for contest in contests:
                title = f"n = {n}, d = {values:,}: {contest.label}"
                here.append(
                    race(
                        contest, n, values, field(contest, case, options.backends, options.threads, peers),
                        repeat=options.repeat, budget=options.budget, forecast=forecast,
                        pause=0.0 if options.quick else PAUSE,
                        show=partial(_show, progress, task, title),
                    )
                )  # fmt: skip
                progress.advance(task)
            table, notes = size_table(here, options.bits, copy, encodings[-1])
            out.print(table)
            out.print(notes, markup=False)
            outcomes += here
            _save(options, {"results": document(outcomes), "unfinished": True})
    return outcomes, encodings


def _show(progress: Progress, task: TaskID, title: str, name: str) -> None:
    progress.update(task, description=f"{title}, {name}")


def _encode(case: Case) -> Encoding:
    begin = time.perf_counter()
    for row in case.floats:
        quantize(row, case.layout, case.lattice)
    return Encoding(case.facts.n, case.layout.size, time.perf_counter() - begin)


def _memory(options: argparse.Namespace, contests: list[Contest]) -> list[Answer]:
    n, values = options.memory
    chosen = contests[:2] if options.quick else contests
    ours = our_name(options.backends[0])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        task = progress.add_task("", total=len(chosen) * (1 + len(PEERS)))

        def ask(label: str, name: str) -> Question:
            progress.update(task, description=f"memory: {label}, {name}", advance=1)
            return Question(
                label, name, n, values if name == ours else max(values // 10, 1),
                options.bits, options.threads, options.backends[0], options.seed,
            )  # fmt: skip

        return measure_memory(chosen, [ours, *PEERS], ask)


def _print_machine(found: dict[str, Any], out: Console) -> None:
    speeds = found["bandwidth"]
    out.print(found["processor"])
    out.print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    out.print(
        f"memory bandwidth: copy {speeds['copy'] / 1e9:.1f} GB/s, triad {speeds['triad'] / 1e9:.1f} GB/s"
    )


def _print_summary(outcomes: list[Outcome], out: Console) -> None:
    summary = summarize(outcomes)
    compiling = sum(
        max(0.0, timing.first - (timing.median or 0.0))
        for outcome in outcomes
        for timing in outcome.timings
        if timing.ours and timing.first is not None
    )
    out.print(f"first runs of ours beyond the median one (compiling, warming up): {compiling:.1f} s in all")
    if summary.geometric_mean is None:
        out.print("no ratio: no peer took part")
        return
    out.print(
        f"geometric mean of {summary.count} ratios: {summary.geometric_mean:.1f}x; "
        f"smallest: {summary.smallest:.2f}x ({summary.smallest_at})"
    )


def _save(options: argparse.Namespace, found: dict[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
