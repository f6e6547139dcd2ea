"""The reference kernels: NumPy only, one thread each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.backend import Backend, Integers, Rows, SeparateCombination, Units, exact_columns
from folkmoot.aggregation.mixing_terms import MixingTerms
from folkmoot.aggregation.networks import Comparison, Kept, network_for_sum, sorting_network

_SINGLE_THREADED_MULTIPLICATIONS = 1 << 17
"""OpenBLAS keeps a product of at most this many multiplications on the calling thread."""

_SLAB_BYTES = 1 << 19

Lines = list[Integers]


class NumpyBackend(SeparateCombination):
    """Kernels in NumPy; see `Backend` for what each computes."""

    block_bytes = 1 << 19

    def smallest(self, rows: Rows) -> int:
        return int(rows.matrix.min())

    def products(self, rows: Rows) -> tuple[npt.NDArray[np.int64], int]:
        block, count, columns = rows.matrix, rows.count, rows.columns
        exact = exact_columns(1 << (8 * block.itemsize - 1))
        if block.itemsize == 1:
            exact = exact_columns(1 << 14)
        step = min(exact, columns, max(16, _SINGLE_THREADED_MULTIPLICATIONS // (count * count)))
        # The sum over all slabs stays within the columns that are exact in float64.
        slabs = min(exact // step, -(-columns // step), max(1, _SLAB_BYTES // (8 * count * step)))
        floats = np.empty((slabs, count, step))
        partial = np.empty((slabs, count, count))
        total = np.zeros((count, count), np.int64)
        for first in range(0, columns, slabs * step):
            starts = range(first, min(first + slabs * step, columns), step)
            for slab, start in zip(floats, starts, strict=False):
                width = min(step, columns - start)
                slab[:, :width] = block[:, start : start + width]
                slab[:, width:] = 0
            used = len(starts)
            np.matmul(floats[:used], floats[:used].transpose(0, 2, 1), out=partial[:used])
            total += partial[:used].sum(axis=0).astype(np.int64)
        return total, int(block.min())

    def weighted_sum(self, rows: Rows, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        total = np.zeros(rows.columns, np.int64)
        for row, weight in zip(rows.matrix, weights, strict=True):
            if weight == 1:
                total += row
            elif weight:
                total += row.astype(np.int64) * weight
        return total

    def rank_sum(self, rows: Rows, ranks: tuple[int, ...]) -> npt.NDArray[np.int64]:
        lines = _exchanged(rows, network_for_sum(rows.count, ranks))
        return _total([lines[rank] for rank in ranks], rows.columns)

    def nearest_sum(self, rows: Rows, kept: int, centre: tuple[int, ...]) -> npt.NDArray[np.int64]:
        lines = _exchanged(rows, sorting_network(rows.count))
        middle = 2 * _total([lines[rank] for rank in centre], rows.columns)
        total = _total(lines[:kept], rows.columns)
        for low, high in zip(lines, lines[kept:], strict=False):
            smaller, larger = low.astype(np.int64), high.astype(np.int64)
            total += np.where((smaller + larger) * len(centre) < middle, larger - smaller, 0)
        return total

    def weighted_median(self, rows: Rows, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        values, below = _weighed(rows, weights)
        doubled, whole = 2 * below, sum(weights)
        lower = (doubled >= whole).argmax(axis=0)
        upper = (doubled > whole).argmax(axis=0)
        total: npt.NDArray[np.int64] = (
            np.take_along_axis(values, lower[None], 0)[0] + np.take_along_axis(values, upper[None], 0)[0]
        )
        return total

    def weighted_trimmed_sum(self, rows: Rows, weights: Sequence[int], trimmed: int) -> npt.NDArray[np.int64]:
        values, below = _weighed(rows, weights)
        inside = np.clip(below, trimmed, sum(weights) - trimmed)
        total: npt.NDArray[np.int64] = (np.diff(inside, axis=0, prepend=trimmed) * values).sum(axis=0)
        return total

    def mix(self, rows: Rows, terms: MixingTerms) -> npt.NDArray[np.int32]:
        block = rows.matrix.astype(np.int64)
        everything = block.sum(axis=0)
        mixed = np.empty((len(terms.base), rows.columns), np.int32)
        for target, base, start, stop in zip(
            mixed, terms.base, terms.starts[:-1], terms.starts[1:], strict=True
        ):
            row = everything * base
            for index, factor in zip(terms.indices[start:stop], terms.factors[start:stop], strict=True):
                row += block[index] * factor
            target[:] = (row + (1 << terms.shift >> 1)) >> terms.shift
        return mixed

    def row_products(self, rows: Rows, pivot: int) -> tuple[npt.NDArray[np.int64], int]:
        block = rows.matrix.astype(np.int64)
        found = np.stack([(block * block).sum(axis=1), (block * block[pivot]).sum(axis=1)])
        return found, int(block.min())

    def values(
        self, numerators: npt.NDArray[np.int64], denominator: int, units: Units, out: npt.NDArray[np.float32]
    ) -> None:
        quotients = numerators.astype(np.float64)
        quotients /= denominator
        for columns, unit in units.runs():
            quotients[columns] *= unit
        out[:] = quotients


def _exchanged(rows: Rows, comparisons: Iterable[Comparison]) -> Lines:
    lines = list(rows.matrix.copy())
    spare = np.empty_like(lines[0])
    for comparison in comparisons:
        low, high = lines[comparison.low], lines[comparison.high]
        if comparison.kept is Kept.LOW:
            np.minimum(low, high, out=low)
        elif comparison.kept is Kept.HIGH:
            np.maximum(low, high, out=high)
        else:
            np.minimum(low, high, out=spare)
            np.maximum(low, high, out=high)
            lines[comparison.low], spare = spare, low
    return lines


def _total(lines: Lines, columns: int) -> npt.NDArray[np.int64]:
    total = np.zeros(columns, np.int64)
    for line in lines:
        total += line
    return total


def _weighed(rows: Rows, weights: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each column in ascending order, and the weight up to each value, both int64 (n, c)."""
    order = rows.matrix.argsort(axis=0, kind="stable")
    values = np.take_along_axis(rows.matrix, order, 0).astype(np.int64)
    return values, np.cumsum(np.array(weights, np.int64)[order], axis=0)


_BACKEND = NumpyBackend()


def backend(name: str) -> Backend:
    return _BACKEND
