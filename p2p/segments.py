"""Who fetches which leaves of one blob: runs of leaves handed out, given back, and overtaken. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Set

from folkmoot.p2p.types import PeerId

__all__ = ["Segments", "runs"]


class Segments:
    """The leaves that are still `missing`, divided over providers in runs without gaps.

    `missing` is the caller's set; it shrinks as leaves arrive. A run has at most `most` leaves and, unless
    few are left, at least `least`.
    """

    def __init__(self, missing: Set[int], least: int, most: int) -> None:
        self._missing, self._least, self._most = missing, least, most
        self._todo = deque(runs(missing))
        self._taken: dict[PeerId, range] = {}

    @property
    def waiting(self) -> int:
        """Runs that nobody fetches."""
        return len(self._todo)

    @property
    def busy(self) -> int:
        """Providers that fetch a run."""
        return len(self._taken)

    def take(self, peer: PeerId, sharers: int) -> range | None:
        """The next run for `peer` when `sharers` providers are at work; None when all leaves are taken."""
        if not self._todo:
            return None
        run = self._todo.popleft()
        length = min(self._most, max(self._least, -(-len(self._missing) // (2 * sharers))))
        if len(run) > length:
            self._todo.appendleft(run[length:])
            run = run[:length]
        self._taken[peer] = run
        return run

    def overtake(self, peer: PeerId) -> range | None:
        """The later half of what the slowest provider still owes, for another to fetch as well."""
        rests = [[leaf for leaf in run if leaf in self._missing] for run in self._taken.values()]
        rest = max(rests, key=len, default=[])
        if not rest:
            return None
        self._taken[peer] = next(runs(rest[len(rest) // 2 :]))
        return self._taken[peer]

    def finish(self, peer: PeerId) -> None:
        """The run of `peer` has ended; leaves of it that are missing and owed by nobody else wait again."""
        run = self._taken.pop(peer, None)
        if run is not None:
            owed = {leaf for other in (*self._taken.values(), *self._todo) for leaf in other}
            self._todo.extend(runs(leaf for leaf in run if leaf in self._missing and leaf not in owed))


def runs(leaves: Iterable[int]) -> Iterator[range]:
    """The leaves as ranges without gaps, in order."""
    start = stop = -1
    for leaf in sorted(leaves):
        if leaf != stop:
            if stop > start:
                yield range(start, stop)
            start = leaf
        stop = leaf + 1
    if stop > start:
        yield range(start, stop)
