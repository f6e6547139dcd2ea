"""What an array library has to do for the exact passes, and how one is chosen by name.

A kernel sees one block of columns at a time. Every kernel is exact: two backends differ in speed only.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import BackendUnavailable, BoundExceeded
from folkmoot.aggregation.mixing_terms import MixingTerms

_EXACT_FLOAT64 = 2**53

_MODULES = {
    "numpy": "folkmoot.aggregation.numpy_backend",
    "numba": "folkmoot.aggregation.numba_backend",
    "torch": "folkmoot.aggregation.torch_backend",
    "cuda": "folkmoot.aggregation.torch_backend",
}
BACKENDS = tuple(_MODULES)
"""Names that `backend=` accepts, beside "auto": numba where it is installed, else numpy."""

Integers = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a range of columns, run by run: run k ends before column stops[k], of the range."""

    stops: npt.NDArray[np.int64]
    units: npt.NDArray[np.float64]
    """Powers of two."""

    def runs(self) -> Iterator[tuple[slice, float]]:
        """The columns of each run, and their unit."""
        start = 0
        for stop, unit in zip(self.stops.tolist(), self.units.tolist(), strict=True):
            yield slice(start, stop), unit
            start = stop


class Rows(Protocol):
    """n rows of integers, c columns each: a matrix, or where each row lies in memory."""

    @property
    def count(self) -> int: ...

    @property
    def columns(self) -> int: ...

    @property
    def matrix(self) -> Integers:
        """Shape (n, c). May be a copy."""

    @property
    def addresses(self) -> npt.NDArray[np.uint64]:
        """Where the c values of each row begin; they lie one after the other."""

    @property
    def dtype(self) -> np.dtype[Any]: ...


class Backend(Protocol):
    """Exact kernels over `Rows` of int8, int16 or, once mixed, int32 up to 2^30 in absolute value."""

    block_bytes: int
    """How much of the updates a thread should see at a time: what stays in a cache between two kernels."""

    combines_any_width: bool
    """Whether `combination_values` needs no memory for the columns that it sees at a time."""

    def smallest(self, rows: Rows) -> int:
        """The smallest value of all."""

    def products(self, rows: Rows) -> tuple[npt.NDArray[np.int64], int]:
        """Inner products of int8 or int16 rows, (n, n) int64, with c * M^2 < 2^63, and the smallest value."""

    def row_products(self, rows: Rows, pivot: int) -> tuple[npt.NDArray[np.int64], int]:
        """The diagonal of `products` and its row `pivot`, (2, n), and the smallest value."""

    def weighted_sum(self, rows: Rows, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        """sum_i weights[i] * row_i, shape (c,), with sum |weights| <= MAX_TOTAL_WEIGHT."""

    def rank_sum(self, rows: Rows, ranks: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Column by column the sum of the values of these ranks (0 is the smallest), shape (c,)."""

    def nearest_sum(self, rows: Rows, kept: int, centre: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """See `plans.NearestSum`; shape (c,). (x + y) * |centre| < 2^32 * 2^8 fits int64."""

    def weighted_median(self, rows: Rows, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        """See `plans.WeightedMedian`; shape (c,)."""

    def weighted_trimmed_sum(self, rows: Rows, weights: Sequence[int], trimmed: int) -> npt.NDArray[np.int64]:
        """See `plans.WeightedTrimmedSum`; shape (c,)."""

    def mix(self, rows: Rows, terms: MixingTerms) -> npt.NDArray[np.int32]:
        """The rows of a mixing over its `row_denominator`, shape (m, c); see `MixingTerms`.

        A sum is at most 2^32 * M < 2^47: exact in int64 and float64, and with shift 0 in int32.
        """

    def values(
        self, numerators: npt.NDArray[np.int64], denominator: int, units: Units, out: npt.NDArray[np.float32]
    ) -> None:
        """out = float32(float64(numerator) / denominator * unit), each operation correctly rounded."""

    def combination_values(
        self,
        rows: Rows,
        weights: Sequence[int],
        denominator: int,
        units: Units,
        out: npt.NDArray[np.float32],
    ) -> int:
        """`values` of `weighted_sum`, and the smallest value, at least of the rows whose weight is not 0."""


class SeparateCombination:
    """`combination_values` of a backend that sums all the columns it sees, and then rounds them."""

    combines_any_width = False

    def combination_values(
        self: Backend,
        rows: Rows,
        weights: Sequence[int],
        denominator: int,
        units: Units,
        out: npt.NDArray[np.float32],
    ) -> int:
        self.values(self.weighted_sum(rows, weights), denominator, units, out)
        return self.smallest(rows)


def exact_columns(magnitude: int) -> int:
    """How many products of integers up to `magnitude` sum exactly in float64, in any order: c * m^2 <= 2^53.

    Raises BoundExceeded when not even one does.
    """
    columns = _EXACT_FLOAT64 // (magnitude * magnitude)
    if columns < 1:
        raise BoundExceeded(f"products of integers up to {magnitude} are not exact in float64")
    return columns


@cache
def chosen_backend(name: str) -> str:
    """The name of a backend, with "auto" replaced by numba where it is installed, else numpy."""
    if name != "auto":
        return name
    return "numba" if importlib.util.find_spec("numba") is not None else "numpy"


def load_backend(name: str) -> Backend:
    """The backend called `name`. Raises BackendUnavailable when it is unknown or not installed."""
    name = chosen_backend(name)
    if name not in _MODULES:
        raise BackendUnavailable(f"no backend {name!r}; known: auto, {', '.join(BACKENDS)}")
    try:
        module = importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise BackendUnavailable(
            f"backend {name!r} needs a library that is not installed: {error}"
        ) from error
    return cast(Backend, module.backend(name))
