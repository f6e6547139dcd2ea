"""Rules that choose some of the updates by their distances and average what they chose.

Everything here is exact integers; ties go to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from folkmoot.aggregation.case import Case
from folkmoot.aggregation.errors import SearchTooHard, WeightsInvalid
from folkmoot.aggregation.gram import IntegerMatrix
from folkmoot.aggregation.networks import median_ranks
from folkmoot.aggregation.plans import Combination, Decision, Mixing, NearestSum, selection
from folkmoot.aggregation.subsets import smallest_diameter_subset

_ROOT_BITS = 64
"""Square roots of distances are compared with 32 bits after the point."""


def krum(case: Case) -> Decision:
    """The one update with the smallest Krum score (Blanchard et al. 2017).

    The score of x_i is the sum of the n - f - 2 smallest |x_i - x_j|^2 over the others. ByzFL sums
    n - f - 1 of them: excluded = 1. P2PFL and NEBULA sum all distances, unsquared: excluded = 1, power = 1
    and f = 0. Of 0, 1, 2, 3 and 90 with f = 1 the scores are 5, 2, 2, 5 and 15313: the result is 1.
    """
    return Decision(selection(krum_order(case)[:1], case.count))


def multi_krum(case: Case) -> Decision:
    """The mean of the m updates with the smallest Krum scores; m is n - f unless given.

    Blanchard et al. 2017; the scores are those of all n updates, computed once. With `cap` the mean is
    weighted by min(claim, cap). Of 0, 1, 2, 3 and 90 with f = 1 it is 1.5.
    """
    chosen = krum_order(case)[: case.parameters.get("m", case.count - case.f)]
    if "cap" not in case.parameters:
        return Decision(selection(chosen, case.count))
    claims, members = case.capped_claims(), set(chosen)
    weights = tuple(claim if index in members else 0 for index, claim in enumerate(claims))
    if not any(weights):
        raise WeightsInvalid("every chosen update claims 0 examples, so their weighted mean does not exist")
    return Decision(Combination(weights, sum(weights)))


def krum_order(case: Case) -> list[int]:
    """Indices by ascending Krum score; `excluded` and `power` as for `krum`."""
    distances = case.gram.squared_distances()
    if case.parameters.get("power", 2) == 1:
        distances = tuple(tuple(isqrt(entry << _ROOT_BITS) for entry in row) for row in distances)
    near = case.count - case.f - case.parameters.get("excluded", 2)
    # A row's own distance, 0, is never larger than another, so it is the first of the sorted ones.
    scores = [sum(sorted(row)[1 : near + 1]) for row in distances]
    return sorted(range(case.count), key=lambda index: (scores[index], index))


def bulyan(case: Case) -> Decision:
    """Coordinate-wise mean of the theta - 2f values nearest to the median of theta = n - 2f chosen updates.

    El Mhamdi, Guerraoui, Rouault 2018, with Krum as its selection: the update with the smallest Krum score
    among the remaining r is taken, theta times, with the max(1, r - f - 2) nearest of the remaining others.
    Flower's `aggregate_bulyan` is the same.
    """
    chosen = _bulyan_selection(case.gram.squared_distances(), case.f)
    theta = len(chosen)
    return Decision(
        NearestSum(theta - 2 * case.f, median_ranks(theta)), Mixing.choosing(sorted(chosen), case.count)
    )


def _bulyan_selection(distances: IntegerMatrix, f: int) -> list[int]:
    count = len(distances)
    # Of each update its distances to the remaining others, ascending.
    near = [
        sorted((entry, other) for other, entry in enumerate(row) if other != index)
        for index, row in enumerate(distances)
    ]
    remaining = list(range(count))
    chosen: list[int] = []
    while len(chosen) < count - 2 * f:
        kept = max(1, len(remaining) - f - 2)
        best = min(remaining, key=lambda index: (sum(entry for entry, _ in near[index][:kept]), index))
        chosen.append(best)
        remaining.remove(best)
        for index in remaining:
            near[index].remove((distances[index][best], best))
    return chosen


def monna(case: Case) -> Decision:
    """The mean of the n - f updates nearest to the one with index `pivot` (Farhadkhani et al. 2023).

    The pivot is trusted: whoever aggregates for itself names its own update. Of 0, 1, 2 and 90 with f = 1 and
    pivot 0 it is 1. Raises WeightsInvalid when there is no update with that index.
    """
    pivot = case.parameters["pivot"]
    if pivot >= case.count:
        raise WeightsInvalid(f"monna: pivot is {pivot}, but there are only {case.count} updates")
    row = case.gram.squared_distances_from(pivot)
    return Decision(selection(nearest(row, case.count - case.f), case.count))


def nearest(distances: Sequence[int], kept: int) -> list[int]:
    """The indices of the `kept` smallest values, of equal ones those with the lower index."""
    return sorted(range(len(distances)), key=lambda index: (distances[index], index))[:kept]


def mda(case: Case) -> Decision:
    """Minimum diameter averaging: the mean of the n - f updates whose largest distance is smallest.

    Rousseeuw 1985; El Mhamdi et al. 2021. Of equally small subsets the first in lexicographic order of
    indices. Found exactly by a search with a fixed budget of steps; raises SearchTooHard beyond it, which
    only updates made for that purpose reach with fewer than 100 members. Of 0, 1, 2 and 90 with f = 1: 1.
    """
    chosen = smallest_diameter_subset(case.gram.squared_distances(), case.count - case.f)
    if chosen is None:
        raise SearchTooHard(
            "mda: these updates need more than its fixed number of search steps; "
            "use another rule, such as multi-krum, or fewer members"
        )
    return Decision(selection(chosen, case.count))
