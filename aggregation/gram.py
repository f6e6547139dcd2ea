"""The exact Gram matrix of n updates: all that a Gram rule or a score ever looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntegerMatrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products of updates as exact integers: <x_i, x_j> = entries[i][j] * 2^(2 * exponent)."""

    entries: IntegerMatrix
    exponent: int

    @property
    def size(self) -> int:
        """n, the number of updates."""
        return len(self.entries)

    def squared_distances(self) -> IntegerMatrix:
        """|x_i - x_j|^2 = G_ii + G_jj - 2 G_ij, in the unit of `entries`."""
        norms = [self.entries[i][i] for i in range(self.size)]
        return tuple(
            tuple(norms[i] + norms[j] - 2 * entry for j, entry in enumerate(row))
            for i, row in enumerate(self.entries)
        )


class GramSum:
    """Sums products of blocks without overflow: int64 while a bound proves it, Python integers beyond.

    `magnitudes` bounds the absolute values of each row; products of different exponents are kept apart.
    """

    def __init__(self, magnitudes: Sequence[int]) -> None:
        self._rows = len(magnitudes)
        self._product = max(magnitudes) ** 2
        self._running: dict[int, npt.NDArray[np.int64]] = {}
        self._columns: dict[int, int] = {}
        self._settled: dict[int, npt.NDArray[np.object_]] = {}

    def add(self, exponent: int, products: npt.NDArray[np.int64], columns: int) -> None:
        """Add the products of `columns` columns whose values count in units of 2^exponent."""
        held = self._columns.get(exponent, 0)
        # Every entry of the running sum is at most columns * magnitude^2, kept under 2^63.
        if (held + columns) * self._product >= 2**63:
            self._settle(exponent)
            held = 0
        running = self._running.get(exponent)
        self._running[exponent] = products.copy() if running is None else running + products
        self._columns[exponent] = held + columns

    def _settle(self, exponent: int) -> None:
        running = self._running.pop(exponent, None)
        if running is not None:
            settled = self._settled.get(exponent)
            exact = running.astype(object)
            self._settled[exponent] = exact if settled is None else settled + exact
        self._columns.pop(exponent, None)

    def totals(self) -> Mapping[int, npt.NDArray[np.object_]]:
        """Exact sums by exponent, as matrices of Python integers."""
        for exponent in list(self._running):
            self._settle(exponent)
        return self._settled


def combine(sums: Sequence[GramSum], exponent: int) -> IntegerMatrix:
    """Sum over exponents e of 2^(2 (e - exponent)) G_e, with `exponent` the smallest one."""
    total: npt.NDArray[np.object_] | None = None
    for partial in sums:
        for unit, matrix in partial.totals().items():
            scaled = matrix * (1 << (2 * (unit - exponent)))
            total = scaled if total is None else total + scaled
    if total is None:
        return ()
    return tuple(tuple(int(entry) for entry in row) for row in total)
