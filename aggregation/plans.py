"""What a rule decides before the last pass: which rows to form of the updates, and which exact sum to take.

Plans are integers over a common denominator; nothing here looks at a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd

MAX_UPDATES = 256
"""Seats of the membership registry; n * M < 2^23 fits every sum of one column in int32."""

MAX_TOTAL_WEIGHT = 2**32
"""Sum of |weights| of a combination: 2^32 * M < 2^47 fits int64 and is exact in float64."""

FINE = 1 << 32
"""Denominator of weights that a rule had to round: each is at most 2^-32 below its exact value."""
ROW_UNIT = 1 << 15
"""Finest denominator of a mixed row: M * 2^15 < 2^30 keeps its integers in int32."""


@dataclass(frozen=True, slots=True)
class Combination:
    """sum_i weights[i] x_i / denominator: one weight for each update, whatever the column."""

    weights: tuple[int, ...]
    denominator: int


@dataclass(frozen=True, slots=True)
class RankSum:
    """Column by column, the sum of the order statistics `ranks` (0 is the smallest) over `denominator`."""

    ranks: tuple[int, ...]
    denominator: int


@dataclass(frozen=True, slots=True)
class NearestSum:
    """Column by column, the sum of the `kept` values nearest to the mean of the order statistics `centre`.

    The nearest values are neighbours in sorted order; of two equally near ones the smaller stays.
    """

    kept: int
    centre: tuple[int, ...]

    @property
    def denominator(self) -> int:
        return self.kept


@dataclass(frozen=True, slots=True)
class WeightedMedian:
    """Column by column, twice the value at half the total weight: the sum of the lower and the upper one."""

    weights: tuple[int, ...]

    @property
    def denominator(self) -> int:
        return 2


@dataclass(frozen=True, slots=True)
class WeightedTrimmedSum:
    """Column by column, the weighted sum of the values without the mass `trimmed` at either end."""

    weights: tuple[int, ...]
    trimmed: int

    @property
    def denominator(self) -> int:
        return sum(self.weights) - 2 * self.trimmed


ColumnPlan = RankSum | NearestSum | WeightedMedian | WeightedTrimmedSum
Plan = Combination | ColumnPlan


@dataclass(frozen=True, slots=True)
class Mixing:
    """New rows y_j = sum_i rows[j][i] x_i / denominator, with sum_i |rows[j][i]| <= denominator <= 2^32."""

    rows: tuple[tuple[int, ...], ...]
    denominator: int

    @classmethod
    def choosing(cls, chosen: Sequence[int], count: int) -> Mixing:
        """The rows with these indices, as they are."""
        return cls(tuple(tuple(int(i == index) for i in range(count)) for index in chosen), 1)

    def selected(self) -> tuple[int, ...] | None:
        """The indices that the rows copy, or None when a row is more than a copy."""
        if self.denominator != 1 or not all(sum(row) == 1 and min(row) == 0 for row in self.rows):
            return None
        return tuple(row.index(1) for row in self.rows)

    @property
    def row_denominator(self) -> int:
        """Denominator of the integers that a backend forms: exact up to 2^15, rounded to 2^-15 beyond."""
        return self.denominator if self.denominator <= ROW_UNIT else ROW_UNIT

    def after(self, first: Mixing) -> Mixing:
        """This mixing of the rows that `first` makes."""
        columns = list(zip(*first.rows, strict=True))
        rows = [[_dot(row, column) for column in columns] for row in self.rows]
        return reduced_mixing(rows, self.denominator * first.denominator)

    def fold(self, plan: Combination) -> Combination:
        """The combination of the updates that a combination of the rows is."""
        weights = [_dot(plan.weights, column) for column in zip(*self.rows, strict=True)]
        return reduced(weights, plan.denominator * self.denominator)

    def reaches_past(self, count: int) -> Mixing:
        """The same rows, and one more that copies the update after the last: a reference."""
        width = len(self.rows[0])
        rows = [(*row, *(0 for _ in range(count - width))) for row in self.rows]
        rows.extend(
            tuple(self.denominator if i == extra else 0 for i in range(count))
            for extra in range(width, count)
        )
        return Mixing(tuple(rows), self.denominator)


@dataclass(frozen=True, slots=True)
class Decision:
    """The last pass: rows to form first (None: the updates as they are) and what to take of them."""

    plan: Plan
    mixing: Mixing | None = None

    @property
    def denominator(self) -> int:
        """Common denominator of the numerators that the pass yields."""
        if self.mixing is None or isinstance(self.plan, Combination):
            return self.plan.denominator
        return self.plan.denominator * self.mixing.row_denominator


def selection(chosen: Iterable[int], count: int) -> Combination:
    """The plain mean of the updates with these indices."""
    members = set(chosen)
    return Combination(tuple(int(index in members) for index in range(count)), len(members))


def reduced(weights: Sequence[int], denominator: int) -> Combination:
    """The same combination with the smallest denominator, or, beyond 2^32, weights floored to 2^-32.

    sum |weights| <= denominator holds before and after, so the result stays an average of lattice integers.
    Flooring is towards zero: each weight loses less than 2^-32.
    """
    divisor = gcd(denominator, *weights)
    smaller, bottom = [weight // divisor for weight in weights], denominator // divisor
    if bottom > MAX_TOTAL_WEIGHT:
        smaller, bottom = [_towards_zero(weight, bottom) for weight in smaller], FINE
    return Combination(tuple(smaller), bottom)


def reduced_mixing(rows: Sequence[Sequence[int]], denominator: int) -> Mixing:
    """`reduced` for many rows with one denominator."""
    width = len(rows[0])
    flat = reduced([weight for row in rows for weight in row], denominator)
    return Mixing(
        tuple(flat.weights[start : start + width] for start in range(0, len(flat.weights), width)),
        flat.denominator,
    )


def _towards_zero(weight: int, denominator: int) -> int:
    fine = abs(weight) * FINE // denominator
    return fine if weight >= 0 else -fine


def _dot(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(left, right, strict=True) if a and b)
