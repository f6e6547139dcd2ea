"""The same kernels compiled by Numba for this processor; the machine code is cached between runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation import numba_kernels as kernels
from folkmoot.aggregation import numba_order_kernels as order_kernels
from folkmoot.aggregation.backend import Backend, Rows, Units
from folkmoot.aggregation.mixing_terms import MixingTerms
from folkmoot.aggregation.networks import Comparison, network_for_sum, sorting_network

_LINES_BYTES = 32 << 10
"""A sorting network works on this much at a time: the first-level cache of a core."""
_FLOATS_BYTES = 1 << 19
"""The Gram matrix on this much: the second-level cache."""
_WIDTH = 2048
_EXACT_WIDTH = 1024
"""At most so many columns of products up to 2^30 are far below 2^53."""

_Array = npt.NDArray[Any]


class NumbaBackend:
    """Kernels compiled by Numba; see `Backend` for what each computes."""

    block_bytes = 1 << 22
    combines_any_width = True

    def smallest(self, rows: Rows) -> int:
        return int(kernels.smallest(rows.addresses, _like(rows), rows.columns))

    def products(self, rows: Rows) -> tuple[npt.NDArray[np.int64], int]:
        width = max(64, min(_EXACT_WIDTH, _FLOATS_BYTES // (8 * (rows.count + 3)) // 64 * 64))
        total = np.empty((rows.count, rows.count), np.int64)
        least = kernels.products(rows.addresses, _like(rows), rows.columns, width, total)
        return total, int(least)

    def row_products(self, rows: Rows, pivot: int) -> tuple[npt.NDArray[np.int64], int]:
        total = np.zeros((2, rows.count), np.int64)
        least = kernels.row_products(rows.addresses, _like(rows), rows.columns, _EXACT_WIDTH, pivot, total)
        return total, int(least)

    def weighted_sum(self, rows: Rows, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        addresses, factors = _used(rows, weights)
        if (factors == 1).all():
            total: npt.NDArray[np.int64] = np.empty(rows.columns, _sums_like(rows).dtype)
            kernels.selected_sum(addresses, _like(rows), rows.columns, _WIDTH, total)
            return total
        total = np.empty(rows.columns, np.int64)
        kernels.weighted_sum(addresses, _like(rows), rows.columns, factors, _WIDTH, total)
        return total

    def rank_sum(self, rows: Rows, ranks: tuple[int, ...]) -> npt.NDArray[np.int64]:
        sums = _sums_like(rows)
        total: npt.NDArray[np.int64] = np.empty(rows.columns, sums.dtype)
        order_kernels.rank_sum(
            rows.addresses, _like(rows), sums, rows.columns,
            _ranking(rows.count, ranks), np.array(ranks), _width(rows, rows.dtype.itemsize), total,
        )  # fmt: skip
        return total

    def nearest_sum(self, rows: Rows, kept: int, centre: tuple[int, ...]) -> npt.NDArray[np.int64]:
        # (x + y) * |centre| <= 2 * 2^15 * 2^8 for int16; int32 rows sum in int64.
        sums = _sums_like(rows)
        total: npt.NDArray[np.int64] = np.empty(rows.columns, sums.dtype)
        order_kernels.nearest_sum(
            rows.addresses, _like(rows), sums, rows.columns,
            _sorting(rows.count), kept, np.array(centre), _width(rows, rows.dtype.itemsize), total,
        )  # fmt: skip
        return total

    def weighted_median(self, rows: Rows, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        keys, total = _keys_like(rows), np.empty(rows.columns, np.int64)
        order_kernels.weighted_median(
            rows.addresses, _like(rows), keys, rows.columns, _sorting(rows.count),
            np.array(weights, np.int64), sum(weights), _width(rows, keys.dtype.itemsize), total,
        )  # fmt: skip
        return total

    def weighted_trimmed_sum(self, rows: Rows, weights: Sequence[int], trimmed: int) -> npt.NDArray[np.int64]:
        keys, total = _keys_like(rows), np.empty(rows.columns, np.int64)
        order_kernels.weighted_trimmed_sum(
            rows.addresses, _like(rows), keys, rows.columns, _sorting(rows.count),
            np.array(weights, np.int64), trimmed, sum(weights) - trimmed,
            _width(rows, keys.dtype.itemsize), total,
        )  # fmt: skip
        return total

    def mix(self, rows: Rows, terms: MixingTerms) -> npt.NDArray[np.int32]:
        mixed = np.empty((len(terms.base), rows.columns), np.int32)
        if 8 * terms.additions > terms.matrix.size * 3:
            width = max(64, _FLOATS_BYTES // (8 * rows.count) // 64 * 64)
            kernels.mix_densely(
                rows.addresses, _like(rows), rows.columns, terms.matrix, terms.shift, width, mixed
            )
            return mixed
        sums = _empty("<i4" if terms.shift == 0 else "<i8")
        kernels.mix(
            rows.addresses, _like(rows), sums, rows.columns,
            terms.base, terms.starts, terms.indices, terms.factors, terms.shift, _WIDTH, mixed,
        )  # fmt: skip
        return mixed

    def values(
        self, numerators: npt.NDArray[np.int64], denominator: int, units: Units, out: npt.NDArray[np.float32]
    ) -> None:
        kernels.values(numerators, 0, float(denominator), units.stops, units.units, out)

    def combination_values(
        self,
        rows: Rows,
        weights: Sequence[int],
        denominator: int,
        units: Units,
        out: npt.NDArray[np.float32],
    ) -> int:
        addresses, factors = _used(rows, weights)
        divisor = float(denominator)
        if (factors == 1).all():
            least = kernels.selected_values(
                addresses, _like(rows), _sums_like(rows), rows.columns, _WIDTH,
                divisor, units.stops, units.units, out,
            )  # fmt: skip
        else:
            least = kernels.weighted_values(
                addresses, _like(rows), rows.columns, factors, _WIDTH,
                divisor, units.stops, units.units, out,
            )  # fmt: skip
        return int(least)


def _used(rows: Rows, weights: Sequence[int]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    """Addresses and weights of the rows whose weight is not 0."""
    factors = np.array(weights, np.float64)
    used = factors != 0
    return rows.addresses[used], factors[used]


def _like(rows: Rows) -> _Array:
    return _empty(rows.dtype.newbyteorder("=").str)


@lru_cache(maxsize=8)
def _empty(dtype: str) -> _Array:
    return np.empty(0, np.dtype(dtype))


def _sums_like(rows: Rows) -> _Array:
    return _empty("<i8" if rows.dtype.itemsize == 4 else "<i4")


def _keys_like(rows: Rows) -> _Array:
    """24 bits hold an int16 and an index below 256, 40 bits an int32."""
    return _empty("<i8" if rows.dtype.itemsize == 4 else "<i4")


def _width(rows: Rows, itemsize: int) -> int:
    return max(64, _LINES_BYTES // (rows.count * itemsize) // 64 * 64)


@lru_cache(maxsize=64)
def _sorting(lines: int) -> npt.NDArray[np.int64]:
    return _table(sorting_network(lines))


@lru_cache(maxsize=64)
def _ranking(lines: int, ranks: tuple[int, ...]) -> npt.NDArray[np.int64]:
    return _table(network_for_sum(lines, ranks))


def _table(comparisons: Iterable[Comparison]) -> npt.NDArray[np.int64]:
    listed = [(one.low, one.high, int(one.kept)) for one in comparisons]
    return np.array(listed, np.int64).reshape(-1, 3)


_BACKEND = NumbaBackend()


def backend(name: str) -> Backend:
    return _BACKEND
