"""Compiled loops over rows that lie anywhere in memory: integers throughout, or floats that are exact.

`rows` holds the address of the first value of each row, `like` an empty array of the rows' integer type.
Slices are written as loops: Numba's slice assignment is slow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False}
# Reordered and fused additions change nothing: every partial sum is an integer that float64 holds exactly.
_EXACT_FLOATS = {"reassoc", "contract", "nsz", "nnan", "ninf"}


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    signature = types.CPointer(like.dtype)(types.uint64, like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@njit(inline="always")
def row_of(address, like, start, columns):
    """The columns [start, start + columns) of a row. An index that begins at 0 lets the loops vectorise."""
    return carray(_pointer(address + np.uint64(start * like.itemsize), like), (columns,))


@njit(inline="always")
def load(rows, like, start, wide, lines):
    for i in range(rows.shape[0]):
        row, line = row_of(rows[i], like, start, wide), lines[i]
        for c in range(wide):
            line[c] = row[c]


@njit(**OPTIONS)
def smallest(rows, like, columns):
    least = like.dtype.type(0)
    for index in range(rows.shape[0]):
        row = row_of(rows[index], like, 0, columns)
        for c in range(columns):
            least = min(least, row[c])
    return np.int64(least)


@njit(inline="always")
def _add_tile(buffer, i, j, wide, total):
    """Adds the products of four rows from i on with four from j on."""
    a0, a1, a2, a3 = buffer[i], buffer[i + 1], buffer[i + 2], buffer[i + 3]
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


@njit(fastmath=_EXACT_FLOATS, **OPTIONS)
def products(rows, like, columns, width, out):
    """The inner products, (n, n).

    Tiles of 4 x 4 float64 sums over `width` columns, with width * M^2 <= 2^53. Returns the smallest value.
    """
    least = like.dtype.type(0)
    count = rows.shape[0]
    padded = (count + 3) // 4 * 4
    total = np.zeros((padded, padded), np.int64)
    buffer = np.zeros((padded, width), np.float64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        for i in range(count):
            row, floats = row_of(rows[i], like, start, wide), buffer[i]
            for c in range(wide):
                floats[c] = row[c]
                least = min(least, row[c])
        for i in range(0, padded, 4):
            for j in range(i, padded, 4):
                _add_tile(buffer, i, j, wide, total)
    for i in range(count):
        for j in range(i, count):
            out[i, j] = out[j, i] = total[i, j]
    return np.int64(least)


@njit(fastmath=_EXACT_FLOATS, **OPTIONS)
def row_products(rows, like, columns, width, pivot, total):
    """Adds <x_i, x_i> to total[0] and <x_i, x_pivot> to total[1], with width * M^2 <= 2^53.

    Returns the smallest value.
    """
    least = like.dtype.type(0)
    centre = np.empty(width, np.float64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        middle = row_of(rows[pivot], like, start, wide)
        for c in range(wide):
            centre[c] = middle[c]
        for i in range(rows.shape[0]):
            row = row_of(rows[i], like, start, wide)
            square = product = 0.0
            for c in range(wide):
                x = np.float64(row[c])
                square += x * x
                product += x * centre[c]
                least = min(least, row[c])
            total[0, i] += np.int64(square)
            total[1, i] += np.int64(product)
    return np.int64(least)


@njit(inline="always")
def _sum_rows(rows, like, start, wide, sums):
    """The plain sum of the rows, four at a time; n * M < 2^23 for int16, n * 2^30 < 2^38 for int32.

    Returns the smallest value.
    """
    least = like.dtype.type(0)
    for c in range(wide):
        sums[c] = 0
    whole = rows.shape[0] // 4 * 4
    for i in range(0, whole, 4):
        r0, r1 = row_of(rows[i], like, start, wide), row_of(rows[i + 1], like, start, wide)
        r2, r3 = row_of(rows[i + 2], like, start, wide), row_of(rows[i + 3], like, start, wide)
        for c in range(wide):
            p, q, r, s = r0[c], r1[c], r2[c], r3[c]
            sums[c] += p + q + r + s
            least = min(least, min(min(p, q), min(r, s)))
    for i in range(whole, rows.shape[0]):
        row = row_of(rows[i], like, start, wide)
        for c in range(wide):
            sums[c] += row[c]
            least = min(least, row[c])
    return least


@njit(inline="always")
def _sum_weighted(rows, like, start, wide, weights, sums):
    """sum_i weights[i] * row_i in float64, exact below 2^53; returns the smallest value."""
    least = like.dtype.type(0)
    for c in range(wide):
        sums[c] = 0.0
    whole = rows.shape[0] // 4 * 4
    for i in range(0, whole, 4):
        r0, r1 = row_of(rows[i], like, start, wide), row_of(rows[i + 1], like, start, wide)
        r2, r3 = row_of(rows[i + 2], like, start, wide), row_of(rows[i + 3], like, start, wide)
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for c in range(wide):
            p, q, r, s = r0[c], r1[c], r2[c], r3[c]
            sums[c] += w0 * p + w1 * q + w2 * r + w3 * s
            least = min(least, min(min(p, q), min(r, s)))
    for i in range(whole, rows.shape[0]):
        row, weight = row_of(rows[i], like, start, wide), weights[i]
        for c in range(wide):
            sums[c] += weight * row[c]
            least = min(least, row[c])
    return least


@njit(**OPTIONS)
def selected_sum(rows, like, columns, width, out):
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        _sum_rows(rows, like, start, wide, out[start : start + wide])


@njit(fastmath=_EXACT_FLOATS, **OPTIONS)
def weighted_sum(rows, like, columns, weights, width, out):
    sums = np.empty(width, np.float64)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        target = out[start : start + wide]
        _sum_weighted(rows, like, start, wide, weights, sums)
        for c in range(wide):
            target[c] = np.int64(sums[c])


@njit(**OPTIONS)
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
            row = row_of(rows[i], like, start, wide)
            for c in range(wide):
                everything[c] += integer(row[c])
        for j in range(base.shape[0]):
            factor = integer(base[j])
            for c in range(wide):
                sums[c] = integer(everything[c] * factor)
            for k in range(starts[j], starts[j + 1]):
                row, factor = row_of(rows[indices[k]], like, start, wide), integer(factors[k])
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


@njit(fastmath=_EXACT_FLOATS, **OPTIONS)
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
        load(rows, like, start, wide, floats)
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


@njit(**OPTIONS)
def values(numerators, start, denominator, stops, units, out):
    """Two IEEE 754 operations and one rounding a value; no fast-math here.

    `numerators` and `out` begin at column `start` of the range that `stops` counts.
    """
    first = start
    for k in range(stops.shape[0]):
        last = min(stops[k], start + numerators.shape[0])
        if last > first:
            part, target, unit = numerators[first - start : last - start], out[first:last], units[k]
            for c in range(part.shape[0]):
                target[c] = np.float32(np.float64(part[c]) / denominator * unit)
            first = last


@njit(**OPTIONS)
def selected_values(rows, like, sums_like, columns, width, denominator, stops, units, out):
    """`values` of the plain sum of the rows; returns their smallest value."""
    sums = np.empty(width, sums_like.dtype)
    least = like.dtype.type(0)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        least = min(least, _sum_rows(rows, like, start, wide, sums))
        values(sums[:wide], start, denominator, stops, units, out)
    return np.int64(least)


@njit(fastmath=_EXACT_FLOATS, **OPTIONS)
def weighted_values(rows, like, columns, weights, width, denominator, stops, units, out):
    """`values` of the weighted sum; returns the smallest value of the rows."""
    sums = np.empty(width, np.float64)
    least = like.dtype.type(0)
    for start in range(0, columns, width):
        wide = min(width, columns - start)
        least = min(least, _sum_weighted(rows, like, start, wide, weights, sums))
        values(sums[:wide], start, denominator, stops, units, out)
    return np.int64(least)
