"""What an array library has to do for the exact passes, and how one is chosen by name.

A kernel sees one block of columns at a time. Every kernel is exact: two backends differ in speed only.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import BackendUnavailable, BoundExceeded
from folkmoot.aggregation.lattice import LatticeIntegers

MAX_UPDATES = 256
"""Seats of the membership registry; n * M < 2^23 fits every sum of one column in int32."""

MAX_TOTAL_WEIGHT = 2**32
"""Sum of |weights| of a combination: 2^32 * M < 2^47 fits int64 and is exact in float64."""

_EXACT_FLOAT64 = 2**53

_MODULES = {
    "numpy": "folkmoot.aggregation.numpy_backend",
    "torch": "folkmoot.aggregation.torch_backend",
}
BACKENDS = tuple(_MODULES)
"""Names that `backend=` accepts."""


class Backend(Protocol):
    """Exact kernels over one block, an array of shape (n, c) of int16 or int8."""

    def products(
        self, block: LatticeIntegers, extra: npt.NDArray[np.int64] | None, magnitudes: Sequence[int]
    ) -> npt.NDArray[np.int64]:
        """Inner products of the rows, (n, n) int64; with `extra` (c,) appended as a last row, (n+1, n+1).

        `magnitudes` bounds the absolute value of each row, with c * max(magnitudes)^2 < 2^63.
        """

    def weighted_sum(self, block: LatticeIntegers, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        """sum_i weights[i] * block[i], shape (c,), with sum |weights| <= MAX_TOTAL_WEIGHT."""

    def rank_sum(self, block: LatticeIntegers, ranks: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Column by column the sum of the values of these ranks (0 is the smallest), shape (c,)."""


def exact_columns(magnitude: int) -> int:
    """How many products of integers up to `magnitude` sum exactly in float64, in any order: c * m^2 <= 2^53.

    Raises BoundExceeded when not even one does.
    """
    columns = _EXACT_FLOAT64 // (magnitude * magnitude)
    if columns < 1:
        raise BoundExceeded(f"products of integers up to {magnitude} are not exact in float64")
    return columns


def load_backend(name: str) -> Backend:
    """The backend called `name`. Raises BackendUnavailable when it is unknown or not installed."""
    if name not in _MODULES:
        raise BackendUnavailable(f"no backend {name!r}; known: {', '.join(BACKENDS)}")
    try:
        module = importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise BackendUnavailable(
            f"backend {name!r} needs a library that is not installed: {error}"
        ) from error
    return cast(Backend, module.BACKEND)
