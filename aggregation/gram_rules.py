"""Rules that look at distances only and return a combination of the updates.

Everything here is exact integers; ties go to the lower index.
"""

from __future__ import annotations

from collections.abc import Mapping

from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.plans import Combination, selection


def krum_order(gram: Gram, f: int) -> list[int]:
    """Indices by ascending Krum score, the sum of the n - f - 2 smallest squared distances to others."""
    distances = gram.squared_distances()
    near = gram.size - f - 2
    scores = [
        sum(sorted(distance for other, distance in enumerate(row) if other != index)[:near])
        for index, row in enumerate(distances)
    ]
    return sorted(range(gram.size), key=lambda index: (scores[index], index))


def krum(gram: Gram, f: int, parameters: Mapping[str, int]) -> Combination:
    """The one update with the smallest Krum score (Blanchard et al. 2017).

    ByzFL's Krum sums n - f - 1 distances; P2PFL's and NEBULA's sum all of them, unsquared.
    """
    return selection(krum_order(gram, f)[:1], gram.size)


def multi_krum(gram: Gram, f: int, parameters: Mapping[str, int]) -> Combination:
    """The mean of the m updates with the smallest Krum scores; m is n - f unless given.

    Blanchard et al. 2017. The scores are those of all n updates, computed once.
    """
    kept = parameters.get("m", gram.size - f)
    return selection(krum_order(gram, f)[:kept], gram.size)
