"""Compiled loops over rows that lie anywhere in memory: integers throughout, or floats that are exact.

`rows` holds the address of the first value of each row, `like` an empty array of the rows' integer type.
Slices are written as loops: Numba's slice assignment is slow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False}
# Reordered and fused additions change nothing: every partial sum is an integer that float64 holds exactly.
_EXACT_FLOATS = {"reassoc", "contract", "nsz", "nnan", "ninf"}


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    signature = types.CPointer(like.dtype)(types.uint64, like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@njit(inline="always")
def _row(address, like, start, columns):
    """The columns [start, start + columns) of a row. An index that begins at 0 lets the loops vectorise."""
    return carray(_pointer(address + np.uint64(start * like.itemsize), like), (columns,))


@njit(**_OPTIONS)
def smallest(rows, like, columns):
    least = like.dtype.type(0)
    for index in range(rows.shape[0]):
        row = _row(rows[index], like, 0, columns)
        for c in range(columns):
            least = min(least, row[c])
    return np.int64(least)


@njit(fastmath=_EXACT_FLOATS, **_OPTIONS)
def products(rows, like, columns, width, total):
    """Adds the inner products to `total` (m, m), m = n rounded up to 4; the lower triangle stays as it is.

    Tiles of 4 x 4 float64 sums over `width` columns, with width * M^2 <= 2^53.
    """
    count = rows.shape[0]
    padded = total.shape[0]
    buffer = np.zeros((padded, width), np.float64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        for i in range(count):
            row, floats = _row(rows[i], like, start, wide), buffer[i]
            for c in range(wide):
                floats[c] = row[c]
        for i in range(0, padded, 4):
            a0, a1, a2, a3 = buffer[i], buffer[i + 1], buffer[i + 2], buffer[i + 3]
            for j in range(i, padded, 4):
                b0, b1, b2, b3 = buffer[j], buffer[j + 1], buffer[j + 2], buffer[j + 3]
                s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = 0.0
                s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = 0.0
                for c in range(wide):
                    x0, x1, x2, x3 = a0[c], a1[c], a2[c], a3[c]
                    y0, y1, y2, y3 = b0[c], b1[c], b2[c], b3[c]
                    s00 += x0 * y0
                    s01 += x0 * y1
                    s02 += x0 * y2
                    s03 += x0 * y3
                    s10 += x1 * y0
                    s11 += x1 * y1
                    s12 += x1 * y2
                    s13 += x1 * y3
                    s20 += x2 * y0
                    s21 += x2 * y1
                    s22 += x2 * y2
                    s23 += x2 * y3
                    s30 += x3 * y0
                    s31 += x3 * y1
                    s32 += x3 * y2
                    s33 += x3 * y3
                t0, t1, t2, t3 = total[i], total[i + 1], total[i + 2], total[i + 3]
                t0[j] += np.int64(s00)
                t0[j + 1] += np.int64(s01)
                t0[j + 2] += np.int64(s02)
                t0[j + 3] += np.int64(s03)
                t1[j] += np.int64(s10)
                t1[j + 1] += np.int64(s11)
                t1[j + 2] += np.int64(s12)
                t1[j + 3] += np.int64(s13)
                t2[j] += np.int64(s20)
                t2[j + 1] += np.int64(s21)
                t2[j + 2] += np.int64(s22)
                t2[j + 3] += np.int64(s23)
                t3[j] += np.int64(s30)
                t3[j + 1] += np.int64(s31)
                t3[j + 2] += np.int64(s32)
                t3[j + 3] += np.int64(s33)


@njit(**_OPTIONS)
def selected_sum(rows, like, columns, out):
    """The plain sum of the rows; n * M < 2^23 for int16, n * 2^30 < 2^38 for int32."""
    for c in range(columns):
        out[c] = 0
    for index in range(rows.shape[0]):
        row = _row(rows[index], like, 0, columns)
        for c in range(columns):
            out[c] += row[c]


@njit(fastmath=_EXACT_FLOATS, **_OPTIONS)
def weighted_sum(rows, like, columns, weights, width, out):
    """sum_i weights[i] * row_i in float64, exact below 2^53, four rows at a time."""
    count = rows.shape[0]
    sums = np.empty(width, np.float64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        for c in range(wide):
            sums[c] = 0.0
        whole = count // 4 * 4
        for i in range(0, whole, 4):
            r0, r1 = _row(rows[i], like, start, wide), _row(rows[i + 1], like, start, wide)
            r2, r3 = _row(rows[i + 2], like, start, wide), _row(rows[i + 3], like, start, wide)
            w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
            for c in range(wide):
                sums[c] += w0 * r0[c] + w1 * r1[c] + w2 * r2[c] + w3 * r3[c]
        for i in range(whole, count):
            row, weight = _row(rows[i], like, start, wide), weights[i]
            for c in range(wide):
                sums[c] += weight * row[c]
        for c in range(wide):
            target[c] = np.int64(sums[c])


@njit(inline="always")
def _load(rows, like, start, wide, lines):
    for i in range(rows.shape[0]):
        row, line = _row(rows[i], like, start, wide), lines[i]
        for c in range(wide):
            line[c] = row[c]


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


@njit(**_OPTIONS)
def rank_sum(rows, like, sums_like, columns, comparisons, ranks, width, out):
    lines = np.empty((rows.shape[0], width), like.dtype)
    sums = np.empty(width, sums_like.dtype)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        _load(rows, like, start, wide, lines)
        _exchange(lines, comparisons, wide)
        for c in range(wide):
            sums[c] = 0
        for k in range(ranks.shape[0]):
            line = lines[ranks[k]]
            for c in range(wide):
                sums[c] += line[c]
        for c in range(wide):
            target[c] = sums[c]


@njit(**_OPTIONS)
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
        _load(rows, like, start, wide, lines)
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
def _load_keys(rows, like, start, wide, keys):
    """Value * 2^8 + index: in order of value, then of index."""
    for i in range(rows.shape[0]):
        row, line = _row(rows[i], like, start, wide), keys[i]
        for c in range(wide):
            line[c] = keys.dtype.type(row[c]) * keys.dtype.type(256) + keys.dtype.type(i)


@njit(**_OPTIONS)
def weighted_median(rows, like, keys_like, columns, comparisons, weights, whole, width, out):
    count = rows.shape[0]
    keys = np.empty((count, width), keys_like.dtype)
    below = np.empty(width, np.int64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        _load_keys(rows, like, start, wide, keys)
        _exchange(keys, comparisons, wide)
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


@njit(**_OPTIONS)
def weighted_trimmed_sum(rows, like, keys_like, columns, comparisons, weights, low, high, width, out):
    count = rows.shape[0]
    keys = np.empty((count, width), keys_like.dtype)
    below = np.empty(width, np.int64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        _load_keys(rows, like, start, wide, keys)
        _exchange(keys, comparisons, wide)
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


@njit(**_OPTIONS)
def mix(rows, like, sums_like, columns, base, starts, indices, factors, shift, width, out):
    """Rows of a mixing. Sums wrap around in the type of `sums_like`, which holds every final one."""
    integer = sums_like.dtype.type
    everything = np.empty(width, sums_like.dtype)
    sums = np.empty(width, sums_like.dtype)
    half = integer((1 << shift) >> 1)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        for c in range(wide):
            everything[c] = 0
        for i in range(rows.shape[0]):
            row = _row(rows[i], like, start, wide)
            for c in range(wide):
                everything[c] += integer(row[c])
        for j in range(base.shape[0]):
            factor = integer(base[j])
            for c in range(wide):
                sums[c] = integer(everything[c] * factor)
            for k in range(starts[j], starts[j + 1]):
                row, factor = _row(rows[indices[k]], like, start, wide), integer(factors[k])
                if factor == -1:
                    for c in range(wide):
                        sums[c] -= integer(row[c])
                else:
                    for c in range(wide):
                        sums[c] += integer(integer(row[c]) * factor)
            target = out[j, start : start + wide]
            if shift == 0:
                for c in range(wide):
                    target[c] = np.int32(sums[c])
            else:
                for c in range(wide):
                    target[c] = np.int32((sums[c] + half) >> shift)


@njit(fastmath=_EXACT_FLOATS, **_OPTIONS)
def mix_densely(rows, like, columns, matrix, shift, width, out):
    """Rows of a mixing with few equal weights, in float64: every sum is at most 2^47. Tiles of 4 x 4."""
    count, mixed = rows.shape[0], matrix.shape[0]
    padded = (count + 3) // 4 * 4
    floats = np.zeros((padded, width), np.float64)
    sums = np.empty((4, width), np.float64)
    weights = np.zeros(((mixed + 3) // 4 * 4, padded), np.float64)
    for j in range(mixed):
        for i in range(count):
            weights[j, i] = matrix[j, i]
    half = np.int64((1 << shift) >> 1)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        _load(rows, like, start, wide, floats)
        for j in range(0, mixed, 4):
            s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
            for c in range(wide):
                s0[c] = 0.0
                s1[c] = 0.0
                s2[c] = 0.0
                s3[c] = 0.0
            for i in range(0, padded, 4):
                x0, x1, x2, x3 = floats[i], floats[i + 1], floats[i + 2], floats[i + 3]
                v0, v1, v2, v3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
                a0, a1, a2, a3 = v0[i], v0[i + 1], v0[i + 2], v0[i + 3]
                b0, b1, b2, b3 = v1[i], v1[i + 1], v1[i + 2], v1[i + 3]
                c0, c1, c2, c3 = v2[i], v2[i + 1], v2[i + 2], v2[i + 3]
                d0, d1, d2, d3 = v3[i], v3[i + 1], v3[i + 2], v3[i + 3]
                for c in range(wide):
                    p, q, r, s = x0[c], x1[c], x2[c], x3[c]
                    s0[c] += a0 * p + a1 * q + a2 * r + a3 * s
                    s1[c] += b0 * p + b1 * q + b2 * r + b3 * s
                    s2[c] += c0 * p + c1 * q + c2 * r + c3 * s
                    s3[c] += d0 * p + d1 * q + d2 * r + d3 * s
            for k in range(min(4, mixed - j)):
                target, line = out[j + k, start : start + wide], sums[k]
                for c in range(wide):
                    target[c] = np.int32((np.int64(line[c]) + half) >> shift)


@njit(**_OPTIONS)
def values(numerators, denominator, scale, out):
    """Two IEEE 754 operations and one rounding a value; no fast-math here."""
    for c in range(numerators.shape[0]):
        out[c] = np.float32(np.float64(numerators[c]) / denominator * scale)
