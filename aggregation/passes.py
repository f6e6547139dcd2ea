"""The exact passes over the columns of n updates. Memory is one block of n updates for each thread.

Every partial sum is an exact integer, so neither block size, threads nor backend change a result.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.backend import Backend, Rows, Units
from folkmoot.aggregation.errors import BoundExceeded
from folkmoot.aggregation.gram import Gram, GramSum, IntegerMatrix, combine, gram_of_row
from folkmoot.aggregation.lattice import LatticeIntegers
from folkmoot.aggregation.mixing_terms import mixing_terms
from folkmoot.aggregation.networks import are_ranks
from folkmoot.aggregation.plans import (
    MAX_TOTAL_WEIGHT,
    Combination,
    Decision,
    Mixing,
    NearestSum,
    Plan,
    RankSum,
    WeightedMedian,
)
from folkmoot.aggregation.sources import MatrixRows, ScatteredRows, UpdateReader

MAX_CHUNK = 1 << 16
"""256 updates of int16 have column sums under 2^23: 2^16 products of them stay under 2^63."""

MAX_THREADS = 256
_LEAST_EFFORT = 1 << 22
"""Operations that are worth waking a thread for."""
_SORTING_EFFORT = 16
_LIMB_BITS = 15
"""Numerators are cut into limbs of [-2^14, 2^14): no larger than the integers of the updates."""

_RowWork = Callable[[int, Rows, int, int], None]
"""Called with thread, rows (n, stop - start), start, stop."""
_ProductsKernel = Callable[[Rows], tuple[npt.NDArray[np.int64], int]]
_Kernel = Callable[[Rows], npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Passes:
    """How to go over the columns: whose kernels, how many threads, how many columns at once (to 65,536)."""

    backend: Backend
    threads: int
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and not 1 <= self.chunk <= MAX_CHUNK:
            raise BoundExceeded(f"chunk is {self.chunk} columns, expected 1 to {MAX_CHUNK}")
        if not 1 <= self.threads <= MAX_THREADS:
            raise BoundExceeded(f"threads is {self.threads}, expected 1 to {MAX_THREADS}")

    def gram(self, reader: UpdateReader) -> Gram:
        """The exact Gram matrix of all updates."""
        entries, unit = self._summed(reader, self.backend.products, reader.count)
        return Gram(entries, unit)

    def gram_of_row(self, reader: UpdateReader, pivot: int) -> Gram:
        """The norms and the row `pivot` of the Gram matrix; the other entries are None."""
        pivot = pivot if pivot < reader.count else 0
        (norms, row), unit = self._summed(reader, lambda rows: self.backend.row_products(rows, pivot), 2)
        return gram_of_row(norms, row, pivot, unit)

    def _summed(
        self, reader: UpdateReader, kernel: _ProductsKernel, effort: int
    ) -> tuple[IntegerMatrix, int]:
        """What a kernel finds, summed over all columns, and the exponent of its unit."""
        products = _Products(self, reader, kernel)

        def work(thread: int, rows: Rows, start: int, stop: int) -> None:
            reader.require_allowed(rows, start, products.add(thread, rows, start, stop))

        self._over_columns(reader, work, effort)
        return products.total(), products.unit

    def gram_and_sum(self, reader: UpdateReader, decision: Decision) -> tuple[Gram, npt.NDArray[np.int64]]:
        """One reading of the columns for the Gram matrix and the numerators of a decision, shape (size,).

        For a plan that is no combination of updates the numerators border the Gram matrix as its last row and
        column: it is (n + 1, n + 1).
        """
        numerators = np.empty(reader.layout.size, np.int64)
        kernel = self._kernel(decision, reader)
        limbs = 0
        if not isinstance(decision.plan, Combination):
            limbs = _limbs_of(reader.lattice.largest * decision.denominator)
        products = _Products(self, reader, self.backend.products)

        def work(thread: int, rows: Rows, start: int, stop: int) -> None:
            reader.require_allowed(rows, start, self.backend.smallest(rows))
            found = kernel(rows)
            numerators[start:stop] = found
            products.add(thread, _with_limbs(rows, found, limbs) if limbs else rows, start, stop)

        self._over_columns(reader, work, reader.count)
        return Gram(_joined(products.total(), reader.count, limbs), products.unit), numerators

    def sum(self, reader: UpdateReader, decision: Decision) -> npt.NDArray[np.int64]:
        """The numerators of a decision, shape (size,)."""
        numerators = np.empty(reader.layout.size, np.int64)
        kernel = self._kernel(decision, reader)

        def work(thread: int, rows: Rows, start: int, stop: int) -> None:
            reader.require_allowed(rows, start, self.backend.smallest(rows))
            numerators[start:stop] = kernel(rows)

        self._over_columns(reader, work, _effort(decision.plan))
        return numerators

    def values(
        self, reader: UpdateReader, decision: Decision, *, seen: bool = False
    ) -> npt.NDArray[np.float32]:
        """The numerators of a decision over its denominator in the model's unit, float32 (size,).

        seen: whether every value was checked in a pass before this one.
        """
        result = np.empty(reader.layout.size, np.float32)
        kernel = self._kernel(decision, reader)
        runs, plan, backend = _Runs(reader), decision.plan, self.backend
        # A combination checks the rows that it reads.
        checked = isinstance(plan, Combination) and (seen or all(plan.weights))

        def work(thread: int, rows: Rows, start: int, stop: int) -> None:
            if not checked:
                reader.require_allowed(rows, start, backend.smallest(rows))
            units, target = runs.units(start, stop), result[start:stop]
            if isinstance(plan, Combination):
                least = backend.combination_values(rows, plan.weights, plan.denominator, units, target)
                reader.require_allowed(rows, start, least)
            else:
                backend.values(kernel(rows), decision.denominator, units, target)

        any_width = backend.combines_any_width and isinstance(plan, Combination)
        self._over_columns(reader, work, _effort(plan), any_width=any_width)
        return result

    def _kernel(self, decision: Decision, reader: UpdateReader) -> _Kernel:
        mixing, backend = decision.mixing, self.backend
        if mixing is None or isinstance(decision.plan, Combination):
            return _plan_kernel(backend, decision.plan, reader.count)
        inner = _plan_kernel(backend, decision.plan, len(mixing.rows))
        chosen = mixing.selected()
        if chosen is not None:
            return lambda rows: inner(_chosen(rows, chosen))
        _require_mixing(mixing)
        terms = mixing_terms(mixing)
        return lambda rows: inner(MatrixRows(backend.mix(rows, terms)))

    def _over_columns(
        self, reader: UpdateReader, work: _RowWork, effort: int, *, any_width: bool = False
    ) -> None:
        """Do the work for every block of columns; `effort` in operations for each integer that is read.

        any_width: the work takes no memory for its columns, so that arrays need not be cut into blocks.
        """
        size, itemsize = reader.layout.size, reader.lattice.dtype.itemsize
        threads = max(1, min(self.threads, size * reader.count * effort // _LEAST_EFFORT))
        chunk = self.chunk or max(
            256, min(MAX_CHUNK, self.backend.block_bytes // (reader.count * itemsize) // 64 * 64)
        )
        cuts = [size * thread // threads for thread in range(threads + 1)]

        def run(thread: int) -> None:
            width = max(1, cuts[thread + 1] - cuts[thread])
            if self.chunk is not None or not (any_width and reader.in_memory):
                width = min(width, chunk)
            scratch: LatticeIntegers | None = None
            if not reader.in_memory:
                scratch = np.empty((reader.count, width), reader.lattice.dtype)
            for start in range(cuts[thread], cuts[thread + 1], width):
                stop = min(start + width, cuts[thread + 1])
                work(thread, reader.rows(start, stop, scratch), start, stop)

        if threads == 1:
            run(0)
            return
        futures = [_pool().submit(run, thread) for thread in range(1, threads)]
        try:
            run(0)
        finally:
            wait(futures)
        for future in futures:
            future.result()


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that wait for columns; starting them anew costs as much as a small aggregation."""
    return ThreadPoolExecutor(MAX_THREADS - 1, thread_name_prefix="aggregation")


def _effort(plan: Plan) -> int:
    return 1 if isinstance(plan, Combination) else _SORTING_EFFORT


def _plan_kernel(backend: Backend, plan: Plan, count: int) -> _Kernel:
    if isinstance(plan, RankSum):
        if not are_ranks(plan.ranks, count):
            raise BoundExceeded(f"ranks {plan.ranks} do not exist among {count} updates")
        return lambda rows: backend.rank_sum(rows, plan.ranks)
    if isinstance(plan, NearestSum):
        if not (1 <= plan.kept <= count and are_ranks(plan.centre, count)):
            raise BoundExceeded(f"{plan.kept} values nearest to the ranks {plan.centre} of {count} updates")
        return lambda rows: backend.nearest_sum(rows, plan.kept, plan.centre)
    weights = plan.weights
    total = sum(abs(weight) for weight in weights)
    if len(weights) != count or not 0 <= total <= MAX_TOTAL_WEIGHT:
        raise BoundExceeded(
            f"{len(weights)} weights with the total {total} for {count} updates; "
            f"the total may be at most {MAX_TOTAL_WEIGHT}"
        )
    if isinstance(plan, Combination):
        return lambda rows: backend.weighted_sum(rows, weights)
    if isinstance(plan, WeightedMedian):
        return lambda rows: backend.weighted_median(rows, weights)
    return lambda rows: backend.weighted_trimmed_sum(rows, weights, plan.trimmed)


def _require_mixing(mixing: Mixing) -> None:
    largest = max(sum(abs(weight) for weight in row) for row in mixing.rows)
    if not largest <= mixing.denominator <= MAX_TOTAL_WEIGHT:
        raise BoundExceeded(
            f"a mixed row weighs {largest} over {mixing.denominator}, at most 1 over {MAX_TOTAL_WEIGHT}"
        )


def _chosen(rows: Rows, chosen: tuple[int, ...]) -> Rows:
    if isinstance(rows, ScatteredRows):
        return rows.chosen(chosen)
    return MatrixRows(rows.matrix[list(chosen)])


def _limbs_of(magnitude: int) -> int:
    """How many signed limbs of 15 bits hold every integer up to `magnitude`."""
    return -(-(magnitude.bit_length() + 1) // _LIMB_BITS)


def _with_limbs(rows: Rows, numerators: npt.NDArray[np.int64], limbs: int) -> Rows:
    """The rows as int16, and the limbs of the numerators as rows after them, lowest first."""
    extended = np.empty((rows.count + limbs, rows.columns), np.int16)
    extended[: rows.count] = rows.matrix
    rest = numerators
    half, base = 1 << (_LIMB_BITS - 1), 1 << _LIMB_BITS
    for limb in range(limbs - 1):
        low = (rest + half) % base - half
        extended[rows.count + limb] = low
        rest = (rest - low) >> _LIMB_BITS
    extended[-1] = rest
    return MatrixRows(extended)


def _joined(products: IntegerMatrix, count: int, limbs: int) -> IntegerMatrix:
    """The Gram matrix with the limbs after the first `count` rows put together to one row."""
    if not limbs:
        return products
    scales = [1 << (_LIMB_BITS * limb) for limb in range(limbs)]
    border = [
        sum(scale * entry for scale, entry in zip(scales, row[count:], strict=True)) for row in products
    ]
    square = sum(scale * entry for scale, entry in zip(scales, border[count:], strict=True))
    inner = tuple((*products[index][:count], border[index]) for index in range(count))
    return (*inner, (*border[:count], square))


class _Runs:
    """Maximal ranges of columns that share one exponent."""

    def __init__(self, reader: UpdateReader) -> None:
        self._runs = list(_exponent_runs(reader))
        self._starts = [start for start, _, _ in self._runs]

    def units(self, start: int, stop: int) -> Units:
        """The units of the columns [start, stop)."""
        runs = list(self.between(start, stop))
        stops = np.array([last - start for _, last, _ in runs], np.int64)
        return Units(stops, np.array([2.0**exponent for _, _, exponent in runs]))

    def between(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(first, last, exponent) of the parts of [start, stop)."""
        for first, last, exponent in self._runs[bisect_right(self._starts, start) - 1 :]:
            if first >= stop:
                return
            yield max(first, start), min(last, stop), exponent


class _Products:
    """The Gram matrix under construction: one exact sum for each thread, so that no two threads share one."""

    def __init__(self, passes: Passes, reader: UpdateReader, products: _ProductsKernel) -> None:
        self._products = products
        # Limbs reach 2^14, more than an int8 update does.
        magnitude = max(reader.lattice.largest, 1 << (_LIMB_BITS - 1))
        self._sums = [GramSum(magnitude) for _ in range(passes.threads)]
        self._runs = _Runs(reader)
        self.unit = min(reader.lattice.exponents)

    def add(self, thread: int, rows: Rows, start: int, stop: int) -> int:
        """Add the columns [start, stop), run by run of equal exponents; returns the smallest value."""
        smallest = 0
        for first, last, exponent in self._runs.between(start, stop):
            part = rows if (first, last) == (start, stop) else _columns(rows, first - start, last - start)
            products, least = self._products(part)
            self._sums[thread].add(exponent, products, last - first)
            smallest = min(smallest, least)
        return smallest

    def total(self) -> IntegerMatrix:
        return combine(self._sums, self.unit)


def _columns(rows: Rows, first: int, last: int) -> Rows:
    if isinstance(rows, ScatteredRows):
        return rows.cut(first, last)
    return MatrixRows(rows.matrix[:, first:last])


def _exponent_runs(reader: UpdateReader) -> Iterator[tuple[int, int, int]]:
    """(start, stop, exponent) of maximal ranges of columns that share one exponent."""
    offsets, exponents = reader.layout.offsets, reader.lattice.exponents
    start = 0
    for index, exponent in enumerate(exponents):
        if index + 1 == len(exponents) or exponents[index + 1] != exponent:
            yield start, offsets[index + 1], exponent
            start = offsets[index + 1]
