"""Compiled loops that put the values of each column in order; see `numba_kernels` for their arguments.

Numba's cache does not notice a change of what is imported from there: delete `__pycache__` after one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from folkmoot.aggregation.numba_kernels import OPTIONS, load, row_of


@njit(inline="always")
def _exchange(lines, comparisons, wide):
    for k in range(comparisons.shape[0]):
        low, high = lines[comparisons[k, 0]], lines[comparisons[k, 1]]
        kept = comparisons[k, 2]
        if kept == 0:
            for c in range(wide):
                x, y = low[c], high[c]
                low[c] = min(x, y)
                high[c] = max(x, y)
        elif kept == 1:
            for c in range(wide):
                low[c] = min(low[c], high[c])
        else:
            for c in range(wide):
                high[c] = max(low[c], high[c])


@njit(**OPTIONS)
def rank_sum(rows, like, sums_like, columns, comparisons, ranks, width, out):
    lines = np.empty((rows.shape[0], width), like.dtype)
    sums = np.empty(width, sums_like.dtype)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        load(rows, like, start, wide, lines)
        _exchange(lines, comparisons, wide)
        for c in range(wide):
            sums[c] = 0
        for k in range(ranks.shape[0]):
            line = lines[ranks[k]]
            for c in range(wide):
                sums[c] += line[c]
        for c in range(wide):
            target[c] = sums[c]


@njit(**OPTIONS)
def nearest_sum(rows, like, sums_like, columns, comparisons, kept, centre, width, out):
    """With sorted x and middle = twice the sum over `centre`: x_s gives way to x_(s + kept) where
    (x_s + x_(s + kept)) * |centre| < middle."""
    integer = sums_like.dtype.type
    count = rows.shape[0]
    lines = np.empty((count, width), like.dtype)
    sums = np.empty(width, sums_like.dtype)
    middle = np.empty(width, sums_like.dtype)
    size = integer(centre.shape[0])
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        load(rows, like, start, wide, lines)
        _exchange(lines, comparisons, wide)
        for c in range(wide):
            sums[c] = 0
            middle[c] = 0
        for k in range(centre.shape[0]):
            line = lines[centre[k]]
            for c in range(wide):
                middle[c] += integer(line[c]) + integer(line[c])
        for k in range(kept):
            line = lines[k]
            for c in range(wide):
                sums[c] += line[c]
        for k in range(count - kept):
            low, high = lines[k], lines[k + kept]
            for c in range(wide):
                x, y = integer(low[c]), integer(high[c])
                sums[c] += integer(y - x) if integer(integer(x + y) * size) < middle[c] else integer(0)
        for c in range(wide):
            target[c] = sums[c]


@njit(inline="always")
def _load_sorted(rows, like, start, wide, comparisons, keys):
    """Value * 2^8 + index: in order of value, then of index."""
    for i in range(rows.shape[0]):
        row, line = row_of(rows[i], like, start, wide), keys[i]
        for c in range(wide):
            line[c] = keys.dtype.type(row[c]) * keys.dtype.type(256) + keys.dtype.type(i)
    _exchange(keys, comparisons, wide)


@njit(**OPTIONS)
def weighted_median(rows, like, keys_like, columns, comparisons, weights, whole, width, out):
    count = rows.shape[0]
    keys = np.empty((count, width), keys_like.dtype)
    below = np.empty(width, np.int64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        _load_sorted(rows, like, start, wide, comparisons, keys)
        for c in range(wide):
            target[c] = 0
            below[c] = 0
        for k in range(count):
            line = keys[k]
            for c in range(wide):
                before = 2 * below[c]
                below[c] += weights[line[c] & 255]
                after = 2 * below[c]
                value = np.int64(line[c] >> 8)
                lower = before < whole and after >= whole
                upper = before <= whole and after > whole
                target[c] += value * (np.int64(lower) + np.int64(upper))


@njit(**OPTIONS)
def weighted_trimmed_sum(rows, like, keys_like, columns, comparisons, weights, low, high, width, out):
    count = rows.shape[0]
    keys = np.empty((count, width), keys_like.dtype)
    below = np.empty(width, np.int64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        _load_sorted(rows, like, start, wide, comparisons, keys)
        for c in range(wide):
            target[c] = 0
            below[c] = 0
        for k in range(count):
            line = keys[k]
            for c in range(wide):
                before = min(max(below[c], low), high)
                below[c] += weights[line[c] & 255]
                after = min(max(below[c], low), high)
                target[c] += (after - before) * np.int64(line[c] >> 8)
