"""The subset of k points with the smallest diameter, exactly, within a fixed number of steps."""

from __future__ import annotations

from folkmoot.aggregation.gram import IntegerMatrix

SEARCH_STEPS = 200_000
"""Branchings of all searches for one answer together; about two seconds."""


class _TooManySteps(Exception):
    pass


class _Covers:
    """Vertex covers of size k in small graphs, as bit sets: a vertex is in the cover when it is left out."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def exists(self, edges: list[int], alive: int, size: int) -> bool:
        """Whether at most `size` of the vertices `alive` touch every edge among them."""
        self._steps -= 1
        if self._steps < 0:
            raise _TooManySteps
        while True:
            best, most, total = -1, 0, 0
            rest = alive
            while rest:
                vertex = (rest & -rest).bit_length() - 1
                rest &= rest - 1
                degree = (edges[vertex] & alive).bit_count()
                total += degree
                if degree > most:
                    best, most = vertex, degree
            if most == 0:
                return True
            # Each covering vertex touches at most `most` of the total / 2 edges.
            if size <= 0 or total > 2 * size * most:
                return False
            if most > size:
                # More neighbours than may be left out: the vertex itself must be.
                alive &= ~(1 << best)
                size -= 1
                continue
            if most == 1:
                return total // 2 <= size
            break
        if self.exists(edges, alive & ~(1 << best), size - 1):
            return True
        neighbours = edges[best] & alive
        return self.exists(edges, alive & ~neighbours & ~(1 << best), size - most)


def smallest_diameter_subset(
    distances: IntegerMatrix, kept: int, steps: int = SEARCH_STEPS
) -> list[int] | None:
    """The indices of `kept` points with the smallest largest distance; None when it takes too many steps.

    Of equally small ones the first in lexicographic order. Points farther apart than a bound are joined by
    an edge; a subset within the bound exists when n - kept points cover all edges. The bound is found by
    bisection over the distances, then the points are taken greedily, each if the rest can still be covered.
    """
    count = len(distances)
    values = sorted({distances[i][j] for i in range(count) for j in range(i)} | {0})
    covers = _Covers(steps)
    everybody = (1 << count) - 1
    try:
        low, high = 0, len(values) - 1
        while low < high:
            middle = (low + high) // 2
            if covers.exists(_farther(distances, values[middle]), everybody, count - kept):
                high = middle
            else:
                low = middle + 1
        return _first(_farther(distances, values[low]), count, kept, covers)
    except _TooManySteps:
        return None


def _farther(distances: IntegerMatrix, bound: int) -> list[int]:
    return [sum(1 << other for other, entry in enumerate(row) if entry > bound) for row in distances]


def _first(edges: list[int], count: int, kept: int, covers: _Covers) -> list[int]:
    chosen: list[int] = []
    alive, spare = (1 << count) - 1, count - kept
    for index in range(count):
        if len(chosen) == kept:
            break
        if not alive >> index & 1:
            continue
        alive &= ~(1 << index)
        far = edges[index] & alive
        if far.bit_count() <= spare and covers.exists(edges, alive & ~far, spare - far.bit_count()):
            chosen.append(index)
            alive &= ~far
            spare -= far.bit_count()
        else:
            spare -= 1
    return chosen
