"""Sorting networks cut down to the ranks that a rule needs: min and max only, whatever the input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache


class Kept(IntEnum):
    """Which outputs of a comparison a later step reads."""

    BOTH = 0
    LOW = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """Puts the smaller value on line `low`, the larger on line `high` (low < high)."""

    low: int
    high: int
    kept: Kept


def merge_exchange(lines: int) -> list[tuple[int, int]]:
    """Batcher's merge exchange for any number of lines (Knuth, TAOCP 3, 5.2.2, Algorithm M)."""
    comparisons: list[tuple[int, int]] = []
    if lines < 2:
        return comparisons
    first = 1 << ((lines - 1).bit_length() - 1)
    p = first
    while p > 0:
        q, r, d = first, 0, p
        while True:
            comparisons.extend((i, i + d) for i in range(lines - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return comparisons


@lru_cache(maxsize=256)
def network_for_sum(lines: int, ranks: tuple[int, ...]) -> tuple[Comparison, ...]:
    """Comparisons after which the lines `ranks` hold the values of these ranks, in any order (0 is smallest).

    Walking backwards, a comparison goes when nothing reads its outputs, and also when both outputs are only
    summed: swapping two summands changes nothing.
    """
    unread, summed, read = range(3)
    use = [summed if line in set(ranks) else unread for line in range(lines)]
    kept: list[Comparison] = []
    for low, high in reversed(merge_exchange(lines)):
        if use[low] == use[high] != read:
            continue
        outputs = Kept.HIGH if use[low] == unread else Kept.LOW if use[high] == unread else Kept.BOTH
        kept.append(Comparison(low, high, outputs))
        use[low] = use[high] = read
    return tuple(reversed(kept))


@lru_cache(maxsize=256)
def sorting_network(lines: int) -> tuple[Comparison, ...]:
    """Comparisons that sort: afterwards line r holds the value of rank r."""
    return tuple(Comparison(low, high, Kept.BOTH) for low, high in merge_exchange(lines))


def median_ranks(count: int) -> tuple[int, ...]:
    """The middle rank of `count` values, or the two middle ones."""
    return (count // 2,) if count % 2 else (count // 2 - 1, count // 2)


def trimmed_ranks(count: int, cut: int) -> tuple[int, ...]:
    """All ranks but the `cut` smallest and the `cut` largest."""
    return tuple(range(cut, count - cut))


def are_ranks(ranks: Iterable[int], count: int) -> bool:
    """Whether these are distinct ranks of `count` values in ascending order."""
    listed = list(ranks)
    return bool(listed) and listed == sorted(set(listed)) and listed[0] >= 0 and listed[-1] < count
