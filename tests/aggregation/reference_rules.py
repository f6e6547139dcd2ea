"""Every rule and pre-aggregator again, slow and obvious, from its paper's formula; shares no code with ours.

x is a matrix (n, d) of float64, or of Fractions, with which distances and their ties are exact. Results are
vectors (d,), or matrices for pre-aggregators. Of equally good choices the lower index wins.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[Any]
Vector = npt.NDArray[Any]


def exact(x: Matrix) -> Matrix:
    """The same numbers as Fractions."""
    result = np.empty(x.shape, dtype=object)
    for place, value in np.ndenumerate(x):
        result[place] = Fraction(float(value))
    return result


def floats(x: Matrix) -> npt.NDArray[np.float64]:
    return np.array(x, dtype=np.float64)


def average(rows: Sequence[Any]) -> Any:
    return sum(rows) / len(rows)


def norm(v: Vector) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in v))


def squared_distances(x: Matrix) -> list[list[Any]]:
    n = len(x)
    result: list[list[Any]] = [[0] * n for _ in range(n)]
    for i, j in itertools.combinations(range(n), 2):
        result[i][j] = result[j][i] = ((x[i] - x[j]) ** 2).sum()
    return result


def by_coordinate(x: Matrix, of_values: Callable[[list[Any]], Any]) -> Vector:
    return np.array([of_values(list(column)) for column in x.T], dtype=x.dtype)


def smallest(values: Sequence[Any], kept: int) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (values[i], i))[:kept]


# Coordinate by coordinate


def mean(x: Matrix, f: int) -> Vector:
    return average(list(x))


def weighted_mean(x: Matrix, f: int, w: Sequence[int], cap: int) -> Vector:
    capped = [min(one, cap) for one in w]
    return sum(one * row for one, row in zip(capped, x, strict=True)) / sum(capped)


def middle(values: list[Any]) -> Any:
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def median(x: Matrix, f: int) -> Vector:
    """Yin et al. 2018, definition 1."""
    return by_coordinate(x, middle)


def weighted_median(x: Matrix, f: int, w: Sequence[int], cap: int) -> Vector:
    """The mean of the lower and the upper weighted median."""
    capped = [min(one, cap) for one in w]

    def of_values(values: list[Any]) -> Any:
        def mass(limit: Any) -> int:
            return 2 * sum(one for one, value in zip(capped, values, strict=True) if value <= limit)

        lower = min(value for value in values if mass(value) >= sum(capped))
        upper = min(value for value in values if mass(value) > sum(capped))
        return (lower + upper) / 2

    return by_coordinate(x, of_values)


def trimmed_mean(x: Matrix, f: int) -> Vector:
    """Yin et al. 2018, definition 2, with f values cut at each end."""
    return by_coordinate(x, lambda values: average(sorted(values)[f : len(values) - f]))


def weighted_trimmed_mean(x: Matrix, f: int, w: Sequence[int], cap: int) -> Vector:
    """Each value is an interval as long as its weight; the first and the last T of the line are cut off."""
    capped = [min(one, cap) for one in w]
    total, trimmed = sum(capped), sum(sorted(capped)[len(capped) - f :])

    def of_values(values: list[Any]) -> Any:
        result, start = 0, 0
        for value, one in sorted(zip(values, capped, strict=True)):
            inside = max(0, min(start + one, total - trimmed) - max(start, trimmed))
            result += value * inside
            start += one
        return result / (total - 2 * trimmed)

    return by_coordinate(x, of_values)


def mean_around(centre: Callable[[list[Any]], Any], kept: int) -> Callable[[list[Any]], Any]:
    def of_values(values: list[Any]) -> Any:
        middle_value = centre(values)
        return average(sorted(values, key=lambda value: (abs(value - middle_value), value))[:kept])

    return of_values


def meamed(x: Matrix, f: int) -> Vector:
    """Xie, Koyejo, Gupta 2018, "Generalized Byzantine-tolerant SGD", definition 8."""
    return by_coordinate(x, mean_around(middle, len(x) - f))


def phocas(x: Matrix, f: int) -> Vector:
    """Xie, Koyejo, Gupta 2018, "Phocas", definition 7."""
    return by_coordinate(x, mean_around(lambda v: average(sorted(v)[f : len(v) - f]), len(x) - f))


# Choices by distance


def krum_scores(x: Matrix, f: int, excluded: int, power: int) -> list[Any]:
    scores = []
    for i, row in enumerate(squared_distances(x)):
        others = [d if power == 2 else math.sqrt(d) for j, d in enumerate(row) if j != i]
        scores.append(sum(sorted(others)[: len(x) - f - excluded]))
    return scores


def krum(x: Matrix, f: int, excluded: int = 2, power: int = 2) -> Vector:
    """Blanchard et al. 2017, section 4."""
    return x[smallest(krum_scores(x, f, excluded, power), 1)[0]]


def multi_krum(
    x: Matrix,
    f: int,
    w: Sequence[int] | None = None,
    cap: int | None = None,
    m: int | None = None,
    excluded: int = 2,
    power: int = 2,
) -> Vector:
    chosen = smallest(krum_scores(x, f, excluded, power), len(x) - f if m is None else m)
    if w is None or cap is None:
        return average([x[i] for i in chosen])
    return weighted_mean(x[chosen], f, [w[i] for i in chosen], cap)


def bulyan(x: Matrix, f: int) -> Vector:
    """El Mhamdi, Guerraoui, Rouault 2018, section 4, with Krum."""
    theta = len(x) - 2 * f
    distances, rest, chosen = squared_distances(x), list(range(len(x))), []
    while len(chosen) < theta:
        neighbours = max(1, len(rest) - f - 2)
        scores = [sum(sorted(distances[i][j] for j in rest if j != i)[:neighbours]) for i in rest]
        chosen.append(rest.pop(smallest(scores, 1)[0]))
    return by_coordinate(x[chosen], mean_around(middle, theta - 2 * f))


def monna(x: Matrix, f: int, pivot: int = 0) -> Vector:
    """Farhadkhani et al. 2023, algorithm 2: nearest-neighbour averaging around the own vector."""
    distances = [((row - x[pivot]) ** 2).sum() for row in x]
    return average([x[i] for i in smallest(distances, len(x) - f)])


def mda(x: Matrix, f: int) -> Vector:
    """Rousseeuw 1985; El Mhamdi et al. 2021: all subsets of n - f."""
    distances = squared_distances(x)

    def diameter(subset: tuple[int, ...]) -> Any:
        return max((distances[i][j] for i, j in itertools.combinations(subset, 2)), default=0)

    best = min(itertools.combinations(range(len(x)), len(x) - f), key=diameter)
    return average([x[i] for i in best])


# Weights by distance


def geometric_median(x: Matrix, f: int, steps: int = 8) -> Vector:
    """Weiszfeld 1937, from zero; no distance counts for less than 1/16 of the lower median of all."""
    x = floats(x)
    z = np.zeros(x.shape[1])
    for _ in range(steps):
        radii = [norm(row - z) for row in x]
        least = sorted(radii)[(len(radii) - 1) // 2] / 16
        if least == 0.0:
            return z
        radii = [max(least, r) for r in radii]
        z = sum(row / r for row, r in zip(x, radii, strict=True)) / sum(1 / r for r in radii)
    return z


def rfa(
    x: Matrix,
    f: int,
    steps: int = 8,
    nu: float = 0.000001,
    w: Sequence[int] | None = None,
    cap: int | None = None,
) -> Vector:
    """Pillutla, Kakade, Harchaoui 2022, algorithm 2: the smoothed Weiszfeld iteration from zero."""
    x = floats(x)
    alphas = [1] * len(x) if w is None or cap is None else [min(one, cap) for one in w]
    z = np.zeros(x.shape[1])
    for _ in range(steps):
        betas = [alpha / max(nu, norm(row - z)) for alpha, row in zip(alphas, x, strict=True)]
        z = sum(beta * row for beta, row in zip(betas, x, strict=True)) / sum(betas)
    return z


def shortened(v: Vector, tau: float) -> Vector:
    return v if norm(v) <= tau else v * (tau / norm(v))


def centered_clipping(
    x: Matrix, f: int, tau: float, steps: int = 1, reference: Vector | None = None
) -> Vector:
    """Karimireddy, He, Jaggi 2021, algorithm 2."""
    x = floats(x)
    v = np.zeros(x.shape[1]) if reference is None else floats(reference)
    for _ in range(steps):
        v = v + average([shortened(row - v, tau) for row in x])
    return v


def clipped_weighted_mean(x: Matrix, f: int, w: Sequence[int], cap: int, tau: float | None = None) -> Vector:
    """Sun et al. 2019, section 4, with the lower median norm as the default bound."""
    x = floats(x)
    if tau is None:
        tau = sorted(norm(row) for row in x)[(len(x) - 1) // 2]
    return weighted_mean(np.array([shortened(row, tau) for row in x]), f, w, cap)


def foolsgold(x: Matrix, f: int) -> Vector:
    """Fung, Yoon, Beschastnikh 2020, algorithm 1 with confidence 1, on the updates of one round."""
    n = len(x)
    values = foolsgold_weights(x) if n > 1 else [1.0]
    if not any(values):
        values = [1.0] * n
    return sum(v * row for v, row in zip(values, floats(x), strict=True)) / sum(values)


def foolsgold_distinctness(x: Matrix) -> list[float]:
    """1 minus the largest cosine to another update, after pardoning; not yet rescaled."""
    n = len(x)
    similar = [[cosine(x[i], x[j]) if i != j else 0.0 for j in range(n)] for i in range(n)]
    closest = [max(row) for row in similar]
    for i, j in itertools.permutations(range(n), 2):
        if closest[j] > closest[i]:
            similar[i][j] *= closest[i] / closest[j]
    return [1 - max(row) for row in similar]


def foolsgold_weights(x: Matrix) -> list[float]:
    weights = foolsgold_distinctness(x)
    if max(weights) <= 0:
        return [0.0] * len(x)
    return [logit(one / max(weights)) for one in weights]


def logit(weight: float) -> float:
    weight = 0.99 if weight >= 1 else weight
    return 0.0 if weight <= 0 else min(1.0, max(0.0, math.log(weight / (1 - weight)) + 0.5))


def cosine(a: Vector, b: Vector) -> float:
    """<a, b> / |a| |b|; of Fractions the square is exact, so parallel vectors have exactly 1 or -1."""
    product, squares = (a * b).sum(), (a * a).sum() * (b * b).sum()
    if squares == 0:
        return 0.0
    size = math.sqrt(product * product / squares)
    return size if product >= 0 else -size


# Directions


def top_eigenvector(x: Matrix, weights: Vector) -> tuple[float, Vector]:
    """Largest eigenvalue of the weighted covariance and its direction."""
    mu = (weights[:, None] * x).sum(axis=0) / weights.sum()
    values, vectors = np.linalg.eigh(((x - mu).T * weights) @ (x - mu) / weights.sum())
    return float(values[-1]), vectors[:, -1]


def caf(x: Matrix, f: int) -> Vector:
    """Allouah, Guerraoui, Stephan 2025, algorithm 2."""
    x = floats(x)
    weights, best, smallest_value = np.ones(len(x)), average(list(x)), math.inf
    while weights.sum() > len(x) - 2 * f:
        mu = (weights[:, None] * x).sum(axis=0) / weights.sum()
        value, u = top_eigenvector(x, weights)
        if value < smallest_value:
            best, smallest_value = mu, value
        taus = ((x - mu) @ u) ** 2
        peak = max(tau for tau, weight in zip(taus, weights, strict=True) if weight > 0)
        if peak == 0.0:
            break
        weights = np.maximum(weights * (1 - taus / peak), 0.0)
    return best


def spread(x: Matrix, subset: Sequence[int]) -> float:
    """Largest eigenvalue of the covariance of a subset."""
    rows = floats(x)[list(subset)]
    centred = rows - rows.mean(axis=0)
    # centred centred^T has the same nonzero eigenvalues as the covariance times the number of rows.
    return float(np.linalg.eigvalsh(centred @ centred.T)[-1]) / len(rows)


def smea(x: Matrix, f: int) -> Vector:
    """Allouah et al. 2023, "On the privacy-robustness-utility trilemma", section 5: all subsets of n - f."""
    subsets = itertools.combinations(range(len(x)), len(x) - f)
    best = min(subsets, key=lambda subset: spread(x, subset))
    return average([x[i] for i in best])


# What comes before a rule


def nnm(x: Matrix, f: int) -> Matrix:
    """Allouah et al. 2023, "Fixing by mixing", algorithm 2."""
    distances = squared_distances(x)
    return np.array([average([x[j] for j in smallest(row, len(x) - f)]) for row in distances])


def bucketing(x: Matrix, f: int, s: int, seed: bytes) -> Matrix:
    """Karimireddy, He, Jaggi 2022, algorithm 1, shuffled by the hash of seed and index."""

    def place(index: int) -> bytes:
        text = b"folkmoot/buckets/1" + struct.pack("<II", len(seed), index) + seed
        return hashlib.sha256(text).digest()

    shuffled = sorted(range(len(x)), key=place)
    buckets = [shuffled[start : start + s] for start in range(0, len(x), s)]
    return np.array([average([x[i] for i in bucket]) for bucket in buckets])


def clipping(x: Matrix, f: int, tau: float) -> Matrix:
    return np.array([shortened(row, tau) for row in floats(x)])


def arc(x: Matrix, f: int) -> Matrix:
    """Allouah et al. 2025, "Adaptive gradient clipping", algorithm 2."""
    x = floats(x)
    n = len(x)
    clipped = 2 * f * (n - f) // n
    bound = sorted(norm(row) for row in x)[n - clipped - 1]
    return np.array([shortened(row, bound) for row in x])
