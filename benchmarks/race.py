"""The race: contenders take turns in one run, so that a busy machine slows all of them alike.

Every contender runs once to warm up; then in turns until it has enough runs or has used its seconds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from contenders import NO_SUCH_RULE, Contender, difference
from contests import Contest

from folkmoot.aggregation import AggregationError

PAUSE = 0.05
"""Seconds between two runs: idle threads of OpenBLAS and OpenMP spin for up to 30 ms after their work."""


@dataclass(slots=True)
class Timing:
    """Seconds of one contender: the first run (compiling included) apart from those that count."""

    name: str
    ours: bool
    obstacle: str | None = None
    first: float | None = None
    seconds: list[float] = field(default_factory=list)
    difference: float | None = None

    @property
    def median(self) -> float | None:
        return median(self.seconds) if self.seconds else None


@dataclass(slots=True)
class Outcome:
    """All timings of one contest at one size. `rows` as in Contest, for this n."""

    label: str
    n: int
    values: int
    rows: int
    timings: list[Timing]

    @property
    def ours(self) -> Timing:
        """Ours on the backend named first."""
        return self.timings[0]

    @property
    def fastest_peer(self) -> Timing | None:
        ready = [timing for timing in self.timings if not timing.ours and timing.seconds]
        return min(ready, key=lambda timing: timing.median or 0.0, default=None)

    @property
    def ratio(self) -> float | None:
        """Seconds of the fastest peer over ours; None where either has none."""
        peer, ours = self.fastest_peer, self.ours.median
        return peer.median / ours if peer is not None and peer.median and ours else None

    @property
    def peers_have_it(self) -> bool:
        """Whether a peer publishes this rule at all."""
        return any(not timing.ours and timing.obstacle != NO_SUCH_RULE for timing in self.timings)


class Forecast:
    """Seconds a value from smaller models of the same contest, to foresee runs that take too long."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._rates: dict[tuple[str, int, str], float] = {}

    def obstacle(self, outcome: Outcome, name: str) -> str | None:
        rate = self._rates.get((outcome.label, outcome.n, name))
        if rate is None or rate * outcome.values <= self._longest:
            return None
        foreseen = rate * outcome.values
        return f"not run: foreseen to take {foreseen:.0f} s, over the longest of {self._longest:.0f}"

    def learn(self, outcome: Outcome) -> None:
        for timing in outcome.timings:
            if timing.median is not None:
                self._rates[outcome.label, outcome.n, timing.name] = timing.median / outcome.values


def race(
    contest: Contest,
    n: int,
    values: int,
    contenders: Sequence[Contender],
    *,
    repeat: int,
    budget: float,
    forecast: Forecast,
    pause: float,
    show: Callable[[str], None],
) -> Outcome:
    """Time every contender `repeat` times in turns, each at most `budget` seconds beyond its first run.

    A peer whose first run exceeds the budget is not run again: that run is its time.
    """
    gc.collect()
    timings = [Timing(contender.name, contender.ours, contender.obstacle) for contender in contenders]
    outcome = Outcome(contest.label, n, values, contest.rows(n, n // 5), timings)
    results: dict[str, Any] = {}
    for contender, timing in zip(contenders, timings, strict=True):
        if not timing.ours:
            timing.obstacle = timing.obstacle or forecast.obstacle(outcome, timing.name)
        if timing.obstacle is None:
            show(timing.name)
            results[timing.name] = _first_run(contender, timing, budget, pause)
    _compare(timings, results)
    results.clear()
    for _ in range(repeat):
        for contender, timing in zip(contenders, timings, strict=True):
            if timing.obstacle is None and _may_run(timing, budget):
                show(timing.name)
                seconds, _result = _run(contender, pause)
                timing.seconds.append(seconds)
    forecast.learn(outcome)
    return outcome


def _first_run(contender: Contender, timing: Timing, budget: float, pause: float) -> Any:
    try:
        timing.first, result = _run(contender, pause)
    except AggregationError as error:
        timing.obstacle = f"refused: {type(error).__name__}: {error}"
        return None
    except Exception as error:
        if timing.ours:
            raise
        timing.obstacle = f"failed: {type(error).__name__}: {error}"
        return None
    if not timing.ours and timing.first > budget:
        timing.seconds.append(timing.first)
    return result


def _may_run(timing: Timing, budget: float) -> bool:
    return not timing.seconds or sum(timing.seconds) + timing.seconds[-1] <= budget


def _run(contender: Contender, pause: float) -> tuple[float, Any]:
    call = contender.prepare()
    time.sleep(pause)
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def _compare(timings: Sequence[Timing], results: dict[str, Any]) -> None:
    ours = results.get(timings[0].name)
    if ours is None:
        return
    for timing in timings[1:]:
        if (theirs := results.get(timing.name)) is not None:
            timing.difference = difference(ours, theirs)
