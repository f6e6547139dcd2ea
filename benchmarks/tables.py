"""The benchmark's results as tables for people and as plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from contenders import NO_SUCH_RULE
from memory import Answer
from race import Outcome, Timing
from rich.table import Table

_SHORT = {NO_SUCH_RULE: "–", "not installed": "absent"}


@dataclass(frozen=True, slots=True)
class Encoding:
    """Seconds to put n float32 updates of d values on the lattice, on one thread."""

    n: int
    values: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Over all contests and sizes that have a ratio."""

    count: int
    geometric_mean: float | None
    smallest: float | None
    smallest_at: str | None


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    ratios = [(outcome.ratio, outcome) for outcome in outcomes if outcome.ratio is not None]
    if not ratios:
        return Summary(0, None, None, None)
    mean = math.exp(sum(math.log(ratio) for ratio, _ in ratios) / len(ratios))
    least, at = min(ratios, key=lambda pair: pair[0])
    return Summary(len(ratios), mean, least, f"{at.label}, n = {at.n}, d = {at.values:,}")


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    thousandth = seconds * 1000
    return f"{thousandth:,.0f}" if thousandth >= 100 else f"{thousandth:.3g}"


def _cell(timing: Timing, notes: list[str], label: str) -> str:
    if timing.obstacle is None:
        return milliseconds(timing.median) + ("*" if len(timing.seconds) == 1 else "")
    if timing.obstacle in _SHORT:
        return _SHORT[timing.obstacle]
    note = f"{timing.name}, {label}: {timing.obstacle}"
    if note not in notes:
        notes.append(note)
    return f"[{notes.index(note) + 1}]"


def size_table(outcomes: Sequence[Outcome], bits: int, copy: float, encoding: Encoding) -> tuple[Table, str]:
    """The table of one size, and the notes that its bracketed numbers refer to."""
    first = outcomes[0]
    table = Table(title=f"n = {first.n}, d = {first.values:,}: milliseconds", header_style="")
    table.add_column("rule", no_wrap=True)
    for timing in first.timings:
        table.add_column(timing.name, justify="right")
    for heading in ("ratio", "must read MB", "of copy speed", "differs"):
        table.add_column(heading, justify="right")
    notes: list[str] = []
    for outcome in outcomes:
        # Numbers in brackets would be read as markup.
        cells = [_cell(timing, notes, outcome.label).replace("[", r"\[") for timing in outcome.timings]
        read = outcome.rows * outcome.values * bits // 8
        seconds, peer = outcome.ours.median, outcome.fastest_peer
        ratio = "" if outcome.ratio is None else f"{outcome.ratio:.1f}x"
        share = "" if seconds is None else f"{read / seconds / copy:.0%}"
        apart = "" if peer is None or peer.difference is None else f"{peer.difference:.0e}"
        table.add_row(outcome.label, *cells, ratio, f"{read / 1e6:,.1f}", share, apart)
    lines = [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]
    lines.append(
        f"Encoding: {milliseconds(encoding.seconds)} ms for {first.n} updates on one thread, "
        f"{milliseconds(encoding.seconds / first.n)} ms for one, which each member does for its own. "
        "* one run only."
    )
    return table, "\n".join(lines)


def memory_table(answers: Sequence[Answer]) -> Table:
    """Peak memory beyond the input; the share is of the contender's own input."""
    names = list(dict.fromkeys(answer.contender for answer in answers))
    sizes = {answer.contender: f"n = {answer.n}, d = {answer.values:,}" for answer in answers}
    table = Table(title="peak memory beyond the input: MB, and share of the input", header_style="")
    table.add_column("rule", no_wrap=True)
    for name in names:
        table.add_column(f"{name}\n{sizes[name]}", justify="right")
    by_pair = {(answer.label, answer.contender): answer for answer in answers}
    for label in dict.fromkeys(answer.label for answer in answers):
        table.add_row(label, *(_memory_cell(by_pair[label, name]) for name in names))
    return table


def _memory_cell(answer: Answer) -> str:
    if answer.extra is None or answer.share is None:
        return _SHORT.get(answer.obstacle or "", answer.obstacle or "")
    return f"{answer.extra / 1e6:,.1f}  {answer.share:.1%}"


def document(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Every outcome with its raw seconds, median and ratio."""
    return [
        {
            "rule": outcome.label,
            "n": outcome.n,
            "d": outcome.values,
            "rows_read": outcome.rows,
            "ratio": outcome.ratio,
            "timings": [{**asdict(timing), "median": timing.median} for timing in outcome.timings],
        }
        for outcome in outcomes
    ]
