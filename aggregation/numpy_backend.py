"""The reference kernels: NumPy only, one thread each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.backend import Backend, exact_columns
from folkmoot.aggregation.lattice import LatticeIntegers
from folkmoot.aggregation.networks import Kept, network_for_sum

_SINGLE_THREADED_MULTIPLICATIONS = 1 << 17
"""OpenBLAS keeps a product of at most this many multiplications on the calling thread."""

_SLAB_BYTES = 1 << 19


class NumpyBackend:
    """Kernels in NumPy; see `Backend` for what each computes."""

    def products(
        self, block: LatticeIntegers, extra: npt.NDArray[np.int64] | None, magnitudes: Sequence[int]
    ) -> npt.NDArray[np.int64]:
        rows, columns = len(magnitudes), block.shape[1]
        exact = exact_columns(max(magnitudes))
        step = min(exact, columns, max(16, _SINGLE_THREADED_MULTIPLICATIONS // (rows * rows)))
        # The sum over all slabs stays within the columns that are exact in float64.
        slabs = min(exact // step, -(-columns // step), max(1, _SLAB_BYTES // (8 * rows * step)))
        floats = np.empty((slabs, rows, step))
        partial = np.empty((slabs, rows, rows))
        total = np.zeros((rows, rows), np.int64)
        for first in range(0, columns, slabs * step):
            starts = range(first, min(first + slabs * step, columns), step)
            for slab, start in zip(floats, starts, strict=False):
                width = min(step, columns - start)
                slab[: block.shape[0], :width] = block[:, start : start + width]
                if extra is not None:
                    slab[-1, :width] = extra[start : start + width]
                slab[:, width:] = 0
            used = len(starts)
            np.matmul(floats[:used], floats[:used].transpose(0, 2, 1), out=partial[:used])
            total += partial[:used].sum(axis=0).astype(np.int64)
        return total

    def weighted_sum(self, block: LatticeIntegers, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        total = np.zeros(block.shape[1], np.int64)
        for row, weight in zip(block, weights, strict=True):
            if weight == 1:
                total += row
            elif weight:
                total += row.astype(np.int64) * weight
        return total

    def rank_sum(self, block: LatticeIntegers, ranks: tuple[int, ...]) -> npt.NDArray[np.int64]:
        lines = list(block.copy())
        spare = np.empty_like(lines[0])
        for comparison in network_for_sum(len(lines), ranks):
            low, high = lines[comparison.low], lines[comparison.high]
            if comparison.kept is Kept.LOW:
                np.minimum(low, high, out=low)
            elif comparison.kept is Kept.HIGH:
                np.maximum(low, high, out=high)
            else:
                np.minimum(low, high, out=spare)
                np.maximum(low, high, out=high)
                lines[comparison.low], spare = spare, low
        total = np.zeros(block.shape[1], np.int64)
        for rank in ranks:
            total += lines[rank]
        return total


BACKEND: Backend = NumpyBackend()
