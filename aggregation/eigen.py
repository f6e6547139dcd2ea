"""The largest eigenvalue and its vector, the same bits on every processor, without a start vector.

A power iteration begins somewhere, and whoever knows where can send updates that are orthogonal to it.
Squaring the matrix needs no beginning. Entries are rounded to integers of 22 bits, so that every partial sum
of a product is exact in float64 and no library's order of adding matters. What is not a product of such
matrices uses + - * / and square roots elementwise in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BITS = 22
"""Of an entry: k 2^44 < 2^53 holds for the 256 members of the largest federation."""
MAX_SIZE = 1 << (53 - 2 * BITS - 1)
SQUARINGS = 12
"""The matrix to the power 2^12: an eigenvalue 0.3 % below the largest is damped by 5e-6."""
_POLISHING = 2
"""Power steps at the end, in float64."""


def largest_eigenpairs(matrices: Floats) -> tuple[Floats, Floats]:
    """Of positive semidefinite matrices (s, k, k), k <= 256: eigenvalues (s,) and unit vectors (s, k).

    With A the matrix, v is the column of A^4096 with the largest diagonal entry, after two more products
    with A; the eigenvalue is v^T A v / v^T v. It is at most the true one, and less by under 0.2 %. Both are 0
    for a matrix of zeros.
    """
    count, size, _ = matrices.shape
    assert size <= MAX_SIZE
    powers = _rounded(matrices)
    for _ in range(SQUARINGS):
        powers = _rounded(np.matmul(powers, powers))
    places = _diagonals(powers).argmax(axis=1)
    vectors = _normalized(powers[np.arange(count), :, places])
    for _ in range(_POLISHING):
        vectors = _normalized(times(matrices, vectors))
    return added(times(matrices, vectors) * vectors, 1), vectors


def times(matrices: Floats, vectors: Floats) -> Floats:
    """Products of symmetric matrices (s, k, k) with vectors (s, k), row after row."""
    total = np.zeros(vectors.shape)
    for place in range(vectors.shape[1]):
        total += matrices[:, place, :] * vectors[:, place, None]
    return total


def added(values: Floats, axis: int) -> Floats:
    """The sum along an axis, one slice after the other."""
    slices: Sequence[Floats] = list(np.moveaxis(values, axis, 0))
    total = slices[0].copy()
    for part in slices[1:]:
        total += part
    return total


def _diagonals(matrices: Floats) -> Floats:
    return np.diagonal(matrices, axis1=1, axis2=2)


def _rounded(matrices: Floats) -> Floats:
    """Scaled so that the largest entry, which is on the diagonal, is 2^22; then rounded to integers."""
    peaks = np.maximum(_diagonals(matrices).max(axis=1), 0.0)
    peaks = np.where(peaks > 0.0, peaks, 1.0)[:, None, None]
    largest = float(1 << BITS)
    return np.clip(np.rint(matrices / peaks * largest), -largest, largest)


def _normalized(vectors: Floats) -> Floats:
    lengths = np.sqrt(added(vectors * vectors, 1))
    return vectors / np.where(lengths > 0.0, lengths, 1.0)[:, None]
