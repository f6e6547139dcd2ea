"""A mixing as few additions: each row as a multiple of the sum of all rows, and what differs from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.plans import FINE, Mixing

FINE_SHIFT = 17
"""From a denominator of 2^32 to one of 2^15."""

_Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class MixingTerms:
    """y_j = base[j] * sum_i x_i + sum of factors[t] * x_indices[t] for t in [starts[j], starts[j + 1]).

    `matrix` (m, n) holds the same weights as they are, exact in float64. `shift` 0: the result as it is.
    Otherwise (y + 2^(shift - 1)) >> shift: to nearest, halves up.
    """

    matrix: npt.NDArray[np.float64]
    base: _Array
    starts: _Array
    indices: _Array
    factors: _Array
    shift: int

    @property
    def additions(self) -> int:
        """Terms of all rows together."""
        return len(self.indices)


def mixing_terms(mixing: Mixing) -> MixingTerms:
    """The terms of a mixing; a denominator over 2^15 is brought to 2^32 first (floored towards zero)."""
    rows: Sequence[Sequence[int]] = mixing.rows
    shift = 0
    if mixing.denominator != mixing.row_denominator:
        shift = FINE_SHIFT
        if mixing.denominator != FINE:
            rows = [[_rescaled(weight, mixing.denominator) for weight in row] for row in rows]
    base, starts, indices, factors = [], [0], [], []
    for row in rows:
        common = Counter(row).most_common(1)[0][0]
        base.append(common)
        for index, weight in enumerate(row):
            if weight != common:
                indices.append(index)
                factors.append(weight - common)
        starts.append(len(indices))
    return MixingTerms(
        np.array(rows, np.float64),
        np.array(base, np.int64),
        np.array(starts, np.int64),
        np.array(indices, np.int64),
        np.array(factors, np.int64),
        shift,
    )


def _rescaled(weight: int, denominator: int) -> int:
    fine = abs(weight) * FINE // denominator
    return fine if weight >= 0 else -fine
