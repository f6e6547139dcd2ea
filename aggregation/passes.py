"""The two exact passes over the columns of n updates. Memory is one block of n updates for each thread.

Every partial sum is an exact integer, so neither block size, threads nor backend change a result.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.backend import MAX_TOTAL_WEIGHT, MAX_UPDATES, Backend
from folkmoot.aggregation.errors import BoundExceeded
from folkmoot.aggregation.gram import Gram, GramSum, combine
from folkmoot.aggregation.lattice import LatticeIntegers
from folkmoot.aggregation.networks import are_ranks
from folkmoot.aggregation.plans import Combination, Plan, RankSum
from folkmoot.aggregation.sources import UpdateReader

MAX_CHUNK = 1 << 16
"""256 updates of int16 have column sums under 2^23: 2^16 products of them stay under 2^63."""

_BlockWork = Callable[[int, LatticeIntegers, int, int], None]
"""Called with thread, block (n, stop - start), start, stop."""


@dataclass(frozen=True, slots=True)
class Passes:
    """How to go over the columns: whose kernels, how many threads, how many columns at once (to 65,536)."""

    backend: Backend
    threads: int
    chunk: int

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= MAX_CHUNK:
            raise BoundExceeded(f"chunk is {self.chunk} columns, expected 1 to {MAX_CHUNK}")
        if not 1 <= self.threads <= 256:
            raise BoundExceeded(f"threads is {self.threads}, expected 1 to 256")

    def gram(self, reader: UpdateReader) -> Gram:
        """The exact Gram matrix of all updates."""
        products = _Products(self, reader, [reader.lattice.largest] * reader.count)

        def work(thread: int, block: LatticeIntegers, start: int, stop: int) -> None:
            products.add(thread, block, None, start, stop)

        self._over_columns(reader, work)
        return products.total()

    def gram_and_sum(self, reader: UpdateReader, plan: Plan) -> tuple[Gram, npt.NDArray[np.int64]]:
        """One reading of the columns for the Gram matrix and the numerators of a plan, shape (size,).

        For a RankSum, which is no combination of updates, the numerators border the Gram matrix as its last
        row and column: it is (n + 1, n + 1).
        """
        largest = reader.lattice.largest
        bordered = isinstance(plan, RankSum)
        magnitudes = [largest] * reader.count + (
            [largest * len(plan.ranks)] if isinstance(plan, RankSum) else []
        )
        products = _Products(self, reader, magnitudes)
        numerators = np.empty(reader.layout.size, np.int64)
        kernel = self._kernel(plan, reader)

        def work(thread: int, block: LatticeIntegers, start: int, stop: int) -> None:
            numerators[start:stop] = kernel(block)
            products.add(thread, block, numerators[start:stop] if bordered else None, start, stop)

        self._over_columns(reader, work)
        return products.total(), numerators

    def sum(self, reader: UpdateReader, plan: Plan) -> npt.NDArray[np.int64]:
        """The numerators of a plan, shape (size,)."""
        numerators = np.empty(reader.layout.size, np.int64)
        kernel = self._kernel(plan, reader)

        def work(thread: int, block: LatticeIntegers, start: int, stop: int) -> None:
            numerators[start:stop] = kernel(block)

        self._over_columns(reader, work)
        return numerators

    def _kernel(self, plan: Plan, reader: UpdateReader) -> Callable[[LatticeIntegers], npt.NDArray[np.int64]]:
        if isinstance(plan, Combination):
            weights = plan.weights
            total = sum(abs(weight) for weight in weights)
            if len(weights) != reader.count or total > MAX_TOTAL_WEIGHT:
                raise BoundExceeded(
                    f"{len(weights)} weights with the total {total} for {reader.count} updates; "
                    f"the total may be at most {MAX_TOTAL_WEIGHT}"
                )
            return lambda block: self.backend.weighted_sum(block, weights)
        ranks = plan.ranks
        if not are_ranks(ranks, reader.count):
            raise BoundExceeded(f"ranks {ranks} do not exist among {reader.count} updates")
        return lambda block: self.backend.rank_sum(block, ranks)

    def _over_columns(self, reader: UpdateReader, work: _BlockWork) -> None:
        if not 1 <= reader.count <= MAX_UPDATES:
            raise BoundExceeded(f"{reader.count} updates, expected 1 to {MAX_UPDATES}")
        size = reader.layout.size
        cuts = [size * thread // self.threads for thread in range(self.threads + 1)]

        def run(thread: int) -> None:
            width = min(self.chunk, max(1, cuts[thread + 1] - cuts[thread]))
            block: LatticeIntegers = np.empty((reader.count, width), reader.lattice.dtype)
            for start in range(cuts[thread], cuts[thread + 1], width):
                stop = min(start + width, cuts[thread + 1])
                reader.read(start, stop, block)
                work(thread, block[:, : stop - start], start, stop)

        if self.threads == 1:
            run(0)
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="aggregation") as pool:
            for future in [pool.submit(run, thread) for thread in range(self.threads)]:
                future.result()


class _Products:
    """The Gram matrix under construction: one exact sum for each thread, so that no two threads share one."""

    def __init__(self, passes: Passes, reader: UpdateReader, magnitudes: list[int]) -> None:
        self._backend = passes.backend
        self._magnitudes = magnitudes
        self._sums = [GramSum(magnitudes) for _ in range(passes.threads)]
        self._unit = min(reader.lattice.exponents)
        self._runs = list(_exponent_runs(reader))
        self._starts = [start for start, _, _ in self._runs]

    def add(
        self,
        thread: int,
        block: LatticeIntegers,
        extra: npt.NDArray[np.int64] | None,
        start: int,
        stop: int,
    ) -> None:
        """Add the columns [start, stop), run by run of equal exponents."""
        for first, last, exponent in self._runs[bisect_right(self._starts, start) - 1 :]:
            if first >= stop:
                break
            columns = slice(max(first, start) - start, min(last, stop) - start)
            products = self._backend.products(
                block[:, columns], None if extra is None else extra[columns], self._magnitudes
            )
            self._sums[thread].add(exponent, products, columns.stop - columns.start)

    def total(self) -> Gram:
        return Gram(combine(self._sums, self._unit), self._unit)


def _exponent_runs(reader: UpdateReader) -> Iterator[tuple[int, int, int]]:
    """(start, stop, exponent) of maximal ranges of columns that share one exponent."""
    offsets, exponents = reader.layout.offsets, reader.lattice.exponents
    start = 0
    for index, exponent in enumerate(exponents):
        if index + 1 == len(exponents) or exponents[index + 1] != exponent:
            yield start, offsets[index + 1], exponent
            start = offsets[index + 1]
