"""Rules that weigh the updates by their norms, distances or directions: fixed-point weights of 32 bits.

Everything here is exact integers; roots and quotients are floored.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from math import isqrt

from folkmoot.aggregation.case import Case
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.plans import FINE, Combination, Decision, reduced

_ONE = FINE
_ROOT = 32
"""Bits after the point of a distance, in the unit of the Gram matrix."""
_FLOOR = 16
"""The geometric median counts no distance for less than 1 / _FLOOR of the median one."""
_LOGARITHM = Context(prec=50)


def shrink_factor(numerator: int, denominator: int, square: int) -> int:
    """floor(2^32 * min(1, sqrt(numerator / denominator / square))): what shortens a vector to a bound."""
    if numerator >= denominator * square:
        return _ONE
    return isqrt((numerator << 64) // (denominator * square))


def middle_square(squares: Sequence[int]) -> int:
    """The median of squared norms, the lower one of two."""
    return sorted(squares)[(len(squares) - 1) // 2]


def clipped_weighted_mean(case: Case) -> Decision:
    """sum_i w_i min(1, tau / |x_i|) x_i / sum_i w_i with w_i = min(claimed examples, cap).

    Norm clipping as in Sun et al. 2019. Without tau the bound is the median norm, the lower one of two, so
    that fewer than half of the members cannot raise it. Of 1, 2 and 9 with equal claims it is 5/3.
    """
    weights, gram = case.capped_claims(), case.gram
    bound = gram.squared(case.parameters["tau"]) if "tau" in case.parameters else None
    numerator, denominator = bound or (middle_square(gram.norms), 1)
    factors = [shrink_factor(numerator, denominator, square) for square in gram.norms]
    clipped = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
    return Decision(reduced(clipped, sum(weights) * _ONE))


def geometric_median(case: Case) -> Decision:
    """z = argmin sum_i |x_i - z| after `steps` of Weiszfeld's iteration from zero (Weiszfeld 1937).

    z <- sum_i x_i / r_i / sum_i 1 / r_i with r_i = |x_i - z|, but at least 1/16 of the median of all of them
    (the lower one of two). Without that floor one update near zero would keep z at its start; fewer than half
    of the members cannot choose it. ByzFL's GeometricMedian is `rfa`. Of 0, 1 and 9 it tends to 1.
    """
    return Decision(_weiszfeld(case.gram, [1] * case.count, case.parameters["steps"], None))


def rfa(case: Case) -> Decision:
    """Smoothed Weiszfeld: geometric-median with r_i = max(nu, |x_i - z|) (Pillutla, Kakade, Harchaoui 2022).

    With `cap` the terms are weighted by min(claim, cap), as in their algorithm. ByzFL's GeometricMedian is
    this rule with nu = 0.1 and steps = 3.
    """
    claims = case.capped_claims() if "cap" in case.parameters else [1] * case.count
    return Decision(_weiszfeld(case.gram, claims, case.parameters["steps"], case.parameters["nu"]))


def _weiszfeld(gram: Gram, claims: Sequence[int], steps: int, smoothing: int | None) -> Combination:
    """smoothing: the least r_i in millionths, 1 / _FLOOR of the median r_i when None."""
    numerator, denominator = gram.squared(smoothing or 0)
    weights, total = [0] * gram.size, 1
    for _ in range(steps):
        # total^2 |x_i - z|^2 for z = sum_j weights_j x_j / total
        squares = _squared_distances_to(gram, weights, total)
        least = isqrt((numerator * total * total << (2 * _ROOT)) // denominator) or 1
        radii = [isqrt(square << (2 * _ROOT)) for square in squares]
        if smoothing is None:
            least = sorted(radii)[(len(radii) - 1) // 2] // _FLOOR or 1
        radii = [max(least, radius) for radius in radii]
        nearest = min(radii)
        # Each factor is at most 2^32; claims are at most 2^24, their sum at most 2^32.
        weights = [
            claim * ((nearest << _ROOT) // radius) for claim, radius in zip(claims, radii, strict=True)
        ]
        total = sum(weights) or 1
    return reduced(weights, total)


def _squared_distances_to(gram: Gram, weights: Sequence[int], total: int) -> list[int]:
    """total^2 |x_i - z|^2 = total^2 G_ii - 2 total (G w)_i + w^T G w for z = sum_j w_j x_j / total."""
    products = [sum(map(int.__mul__, row, weights)) for row in gram.entries]
    square = sum(map(int.__mul__, weights, products))
    return [
        total * total * norm - 2 * total * product + square
        for norm, product in zip(gram.norms, products, strict=True)
    ]


def centered_clipping(case: Case) -> Decision:
    """v <- v + sum_i (x_i - v) min(1, tau / |x_i - v|) / n, `steps` times (Karimireddy, He, Jaggi 2021).

    v starts at zero, or with history = 1 at the reference: the aggregate before this one. Weights are
    rounded down to 2^-48 at each step. Of 1, 2 and 90 with tau 3 it is (1 + 2 + 3) / 3 = 2.
    """
    history = case.parameters["history"]
    gram = case.gram_with_reference if history else case.gram
    numerator, denominator = gram.squared(case.parameters["tau"])
    unit = 1 << 48
    weights = [0] * gram.size
    if history:
        weights[-1] = unit
    for _ in range(case.parameters["steps"]):
        squares = _squared_distances_to(gram, weights, unit)
        factors = [
            shrink_factor(numerator * unit * unit, denominator, square) for square in squares[: case.count]
        ]
        kept = case.count * _ONE - sum(factors)
        weights = [weight * kept // (case.count * _ONE) for weight in weights]
        for index, factor in enumerate(factors):
            weights[index] += factor * (unit // _ONE) // case.count
    return Decision(reduced(weights, unit))


def foolsgold(case: Case) -> Decision:
    """Weights that fall with the largest similarity to another update (Fung, Yoon, Beschastnikh 2020).

    cs_ij = cos(x_i, x_j), v_i = max_j cs_ij; pardoning: cs_ij <- cs_ij v_i / v_j where v_i < v_j; the weight
    1 - max_j cs_ij in [0, 1] is divided by the largest, and then ln(w / (1 - w)) + 0.5 cut to [0, 1], with a
    w of one counting as 0.99. The similarities are those of this round; the paper's sum the rounds before.
    Honest members that agree are punished like sybils, so it is for very different data only. When every
    weight is zero, or there is one update, the result is their plain mean.
    """
    gram, count = case.gram, case.count
    similar = [[_cosine(gram, i, j) if i != j else 0 for j in range(count)] for i in range(count)]
    closest = [max((s for j, s in enumerate(row) if j != i), default=0) for i, row in enumerate(similar)]
    for i, row in enumerate(similar):
        for j in range(count):
            if i != j and 0 < closest[i] < closest[j]:
                row[j] = row[j] * closest[i] // closest[j]
    weights = [
        min(_ONE, max(0, _ONE - max((s for j, s in enumerate(row) if j != i), default=0)))
        for i, row in enumerate(similar)
    ]
    largest = max(weights)
    learned = [_logit(weight * _ONE // largest) if largest else 0 for weight in weights]
    if not any(learned):
        learned = [1] * count
    return Decision(reduced(learned, sum(learned)))


def _cosine(gram: Gram, i: int, j: int) -> int:
    """cos(x_i, x_j) with 32 bits after the point, rounded towards zero; 0 with a zero vector."""
    product, squares = gram.entries[i][j], gram.entries[i][i] * gram.entries[j][j]
    if not squares:
        return 0
    size = isqrt((product * product << (2 * _ROOT)) // squares)
    return size if product >= 0 else -size


def _logit(weight: int) -> int:
    """ln(w / (1 - w)) + 1/2 cut to [0, 1], with 32 bits after the point; `decimal` rounds ln correctly."""
    if weight >= _ONE:
        weight = _ONE * 99 // 100
    if weight <= 0:
        return 0
    quotient = _LOGARITHM.divide(Decimal(weight), Decimal(_ONE - weight))
    scaled = _LOGARITHM.multiply(_LOGARITHM.ln(quotient), Decimal(_ONE))
    return min(_ONE, max(0, int(scaled.to_integral_value(ROUND_FLOOR)) + _ONE // 2))
