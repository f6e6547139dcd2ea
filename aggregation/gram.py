"""The exact Gram matrix of n updates: all that a Gram rule or a score ever looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

IntegerMatrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products as exact integers: <x_i, x_j> = entries[i][j] * 2^(2 * exponent) / denominator^2."""

    entries: IntegerMatrix
    exponent: int
    denominator: int = 1

    @property
    def size(self) -> int:
        """n, the number of vectors."""
        return len(self.entries)

    @property
    def norms(self) -> list[int]:
        """|x_i|^2 in the unit of `entries`."""
        return [self.entries[index][index] for index in range(self.size)]

    def squared_distances(self) -> IntegerMatrix:
        """|x_i - x_j|^2 = G_ii + G_jj - 2 G_ij, in the unit of `entries`."""
        norms = self.norms
        return tuple(_distances(norms, own, row) for own, row in zip(norms, self.entries, strict=True))

    def squared_distances_from(self, index: int) -> tuple[int, ...]:
        """|x_i - x_index|^2 for every i, in the unit of `entries`."""
        norms = self.norms
        return _distances(norms, norms[index], self.entries[index])

    def first(self, count: int) -> Gram:
        """The products of the first `count` vectors."""
        return Gram(tuple(row[:count] for row in self.entries[:count]), self.exponent, self.denominator)

    def mixed(self, rows: Sequence[Sequence[int]], denominator: int) -> Gram:
        """M G M^T for new vectors y_j = sum_i rows[j][i] x_i / denominator."""
        used = [[index for index, weight in enumerate(row) if weight] for row in rows]
        if all(len(indices) == 1 for indices in used):
            # Each y is one x, scaled: no sums.
            scaled = [(row[index], index) for row, (index,) in zip(rows, used, strict=True)]
            entries = tuple(
                tuple([own * other * self.entries[i][j] for other, j in scaled]) for own, i in scaled
            )
            return Gram(entries, self.exponent, self.denominator * denominator)
        left = np.array(rows, dtype=object)
        half = exact_product(left, np.array(self.entries, dtype=object))
        product = exact_product(half, left.T)
        return Gram(
            tuple(tuple(row) for row in product.tolist()), self.exponent, self.denominator * denominator
        )

    def squared(self, millionths: int) -> tuple[int, int]:
        """The square of a length in millionths of the model's unit: a fraction in the unit of `entries`."""
        numerator = (millionths * self.denominator) ** 2
        denominator = 10**12
        if self.exponent >= 0:
            return numerator, denominator << (2 * self.exponent)
        return numerator << (-2 * self.exponent), denominator


def _distances(norms: Sequence[int], own: int, row: Sequence[int]) -> tuple[int, ...]:
    return tuple([own + other - 2 * entry for other, entry in zip(norms, row, strict=True)])


def gram_of_row(norms: Sequence[int], row: Sequence[int], pivot: int, exponent: int) -> Gram:
    """A Gram matrix of which only the diagonal and the row `pivot` are known; the other entries are None."""
    unknown = cast(int, None)
    entries = [[unknown] * len(norms) for _ in norms]
    entries[pivot] = list(row)
    for index, norm in enumerate(norms):
        entries[index][index] = norm
    return Gram(tuple(tuple(line) for line in entries), exponent)


_LIMB = 20


def exact_product(left: npt.NDArray[np.object_], right: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """left @ right for matrices of Python integers of any size, exactly.

    Each is cut into limbs of 20 bits; a float64 product of limbs sums at most k * 2^40 < 2^53 for k <= 2^12.
    """
    assert left.shape[1] <= 1 << 12
    total = np.zeros((left.shape[0], right.shape[1]), dtype=object)
    right_limbs = _limbs(right)
    for i, a in enumerate(_limbs(left)):
        for j, b in enumerate(right_limbs):
            # einsum without optimize calls no BLAS; the sums are exact, so their order is free.
            part = np.einsum("ik,kj->ij", a, b)
            total += part.astype(np.int64).astype(object) << (_LIMB * (i + j))
    return total


def _limbs(matrix: npt.NDArray[np.object_]) -> list[npt.NDArray[np.float64]]:
    mask = (1 << _LIMB) - 1
    limbs = []
    sign = np.where(matrix < 0, -1, 1).astype(np.float64)
    rest = abs(matrix)
    while rest.any():
        limbs.append((rest & mask).astype(np.float64) * sign)
        rest = rest >> _LIMB
    return limbs


class GramSum:
    """Sums products of blocks without overflow: int64 while a bound proves it, Python integers beyond.

    `magnitude` bounds the absolute values of every row; products of different exponents are kept apart.
    """

    def __init__(self, magnitude: int) -> None:
        self._product = magnitude**2
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
        if running is None:
            self._running[exponent] = products.copy()
        else:
            running += products
        self._columns[exponent] = held + columns

    def _settle(self, exponent: int) -> None:
        running = self._running.pop(exponent, None)
        if running is not None:
            settled = self._settled.get(exponent)
            exact = running.astype(object)
            self._settled[exponent] = exact if settled is None else settled + exact
        self._columns.pop(exponent, None)

    def bound(self, unit: int) -> int:
        """No entry of the sum over exponents e of 2^(2 (e - unit)) G_e is larger, 0 when there is none.

        2^63 once a sum has become Python integers.
        """
        if self._settled:
            return 2**63
        return sum(
            columns * self._product << 2 * (exponent - unit) for exponent, columns in self._columns.items()
        )

    def scaled(self, unit: int) -> npt.NDArray[np.int64]:
        """That sum, while `bound` is below 2^63."""
        parts = [products << 2 * (exponent - unit) for exponent, products in self._running.items()]
        total: npt.NDArray[np.int64] = np.sum(parts, axis=0, dtype=np.int64)
        return total

    def totals(self) -> Mapping[int, npt.NDArray[np.object_]]:
        """Exact sums by exponent, as matrices of Python integers."""
        for exponent in list(self._running):
            self._settle(exponent)
        return self._settled


def combine(sums: Sequence[GramSum], exponent: int) -> IntegerMatrix:
    """Sum over exponents e of 2^(2 (e - exponent)) G_e, with `exponent` the smallest one."""
    bound = sum(partial.bound(exponent) for partial in sums)
    if 0 < bound < 2**63:
        whole = sum(partial.scaled(exponent) for partial in sums)
        return tuple(tuple(row) for row in np.asarray(whole).tolist())
    total: npt.NDArray[np.object_] | None = None
    for partial in sums:
        for unit, matrix in partial.totals().items():
            scaled = matrix * (1 << (2 * (unit - exponent)))
            total = scaled if total is None else total + scaled
    if total is None:
        return ()
    return tuple(tuple(row) for row in total.tolist())
