"""What each update was worth, as integers that everybody recomputes: functions of the Gram matrix alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

from folkmoot.aggregation.errors import ScoreInvalid
from folkmoot.aggregation.exact import Aggregate
from folkmoot.aggregation.shapley import CosineGame, shapley_values

FULL_SCORE = 65_535
"""A score of one, as uint16."""
MAX_SCORE_WEIGHT = 1 << 16

_Score = Callable[[Aggregate], list[int]]


def similarity(aggregate: Aggregate) -> list[int]:
    """floor(65535 * max(0, cos(x_i, A))): how far the update points where the aggregate A points.

    A zero update, and every update when A is zero, has 0.
    """
    return [
        _cosine(product, aggregate.gram.entries[index][index], aggregate.square)
        for index, product in enumerate(aggregate.products)
    ]


def influence(aggregate: Aggregate) -> list[int]:
    """floor(65535 * max(0, <u_i, A>) / (r |A|)): leave-one-out influence on the mean of norm-bounded updates.

    u_i is x_i scaled down to at most r, the median norm (the lower one of two). Were u_i replaced by zero,
    the mean of all u would lose <u_i, A> / (n |A|) along the aggregate's direction; the score is that loss as
    a fraction of the most that one member can cause, r / n. Unlike the similarity it falls with the norm, so
    a shrunken copy of somebody's direction earns little; a blown-up one earns no more than the median member.
    """
    norms = [aggregate.gram.entries[index][index] for index in range(aggregate.gram.size)]
    bound = sorted(norms)[(len(norms) - 1) // 2]
    return [
        _cosine(product, max(norm, bound), aggregate.square)
        for product, norm in zip(aggregate.products, norms, strict=True)
    ]


def norm(aggregate: Aggregate) -> list[int]:
    """floor(65535 * min(|x_i|, r) / max(|x_i|, r)) with r the median norm (the lower one of two)."""
    norms = [aggregate.gram.entries[index][index] for index in range(aggregate.gram.size)]
    bound = sorted(norms)[(len(norms) - 1) // 2]
    return [
        isqrt(FULL_SCORE * FULL_SCORE * min(value, bound) // max(value, bound)) if max(value, bound) else 0
        for value in norms
    ]


def krum(aggregate: Aggregate) -> list[int]:
    """floor(65535 * s_min / s_i) with s_i the Krum score of x_i: close to the crowd is high.

    s_i is the sum of the floor(n / 2) smallest |x_i - x_j|^2 over the others (Blanchard et al. 2017): their
    n - f - 2 for the largest f that Krum allows, floor((n - 3) / 2), so that the score is the same whatever f
    a task names. An update with s_i = 0 has 65535. A copy of somebody's update is as close to the crowd as
    the original.
    """
    near = aggregate.gram.size // 2
    # A row's own distance, 0, is never larger than another, so it is the first of the sorted ones.
    sums = [sum(sorted(row)[1 : near + 1]) for row in aggregate.gram.squared_distances()]
    least = min(sums)
    return [FULL_SCORE * least // value if value else FULL_SCORE for value in sums]


def shapley(aggregate: Aggregate) -> list[int]:
    """floor(65535 * max(0, phi_i) / max_j phi_j): Shapley values of the mean of norm-bounded updates.

    phi_i is what x_i adds, on average over the orders in which members could join, to the cosine between the
    mean of those who joined and the aggregate: `shapley.shapley_values` has formula, sources and sampling.
    Zeros and whoever makes coalitions worse have 0, and two equal updates share what one would add. Length
    counts little: whoever joins first is worth its cosine however short it is, so a shrunken copy is better
    told by the influence. All scores are 0 when nobody adds anything.
    """
    values = shapley_values(CosineGame.of(aggregate))
    best = max(values)
    return [FULL_SCORE * value // best if value > 0 else 0 for value in values]


def _cosine(product: int, norm: int, square: int) -> int:
    if product <= 0 or norm == 0 or square == 0:
        return 0
    # The floor of a square root is the integer square root of the floor.
    return min(FULL_SCORE, isqrt(FULL_SCORE * FULL_SCORE * product * product // (norm * square)))


SCORES: dict[str, _Score] = {
    "similarity": similarity,
    "influence": influence,
    "norm": norm,
    "krum": krum,
    "shapley": shapley,
}
"""Score components by name, each a list of 0 to 65535 by index of the update."""


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """Which components count how much: distinct names of SCORES, sorted, with weights from 0 to 65536.

    Raises ScoreInvalid.
    """

    weights: tuple[tuple[str, int], ...] = (("influence", 1), ("similarity", 1))

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weights]
        if unknown := [name for name in names if name not in SCORES]:
            raise ScoreInvalid(f"no score {unknown[0]!r}; known: {', '.join(SCORES)}")
        if names != sorted(set(names)):
            raise ScoreInvalid(f"scores must be distinct and sorted by name, found {names}")
        for name, weight in self.weights:
            if type(weight) is not int or not 0 <= weight <= MAX_SCORE_WEIGHT:
                raise ScoreInvalid(f"the weight of {name} is {weight!r}, expected 0 to {MAX_SCORE_WEIGHT}")
        if not any(weight for _, weight in self.weights):
            raise ScoreInvalid("the weights of all scores are zero")

    def to_document(self) -> dict[str, int]:
        """Plain values for a canonical codec: a map from component to weight."""
        return dict(self.weights)

    @classmethod
    def from_document(cls, document: object) -> ScoreSpec:
        """Read what `to_document` wrote. Raises ScoreInvalid for anything else."""
        if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
            raise ScoreInvalid("scores are a map from names to weights")
        return cls(tuple(sorted(document.items())))


def scores(aggregate: Aggregate, spec: ScoreSpec) -> tuple[int, ...]:
    """One uint16 for each update, in the order of the sources: the weighted mean of components, rounded down.

    They measure agreement with the aggregate, so they are worth what the rule is worth: after `mean` with a
    liar of ten times the norm, the liar agrees best.
    """
    total = sum(weight for _, weight in spec.weights)
    columns = [(weight, SCORES[name](aggregate)) for name, weight in spec.weights]
    return tuple(
        sum(weight * values[index] for weight, values in columns) // total
        for index in range(aggregate.gram.size)
    )
