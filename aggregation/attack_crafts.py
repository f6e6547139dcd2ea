"""What liars send, as formulas over the updates that they know and a seed. No attack here asks the defence.

Every craft reads the known updates in blocks of columns: beside its answer it takes a few rows at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import AttackInvalid

__all__ = [
    "PERTURBATIONS",
    "Craft",
    "Defence",
    "FloatMatrix",
    "FloatVector",
    "Situation",
    "a_little_is_enough",
    "centred_blocks",
    "column_blocks",
    "copy",
    "fall_of_empires",
    "gaussian",
    "infinity",
    "inner_product",
    "little_is_enough_z",
    "mean_and_deviation",
    "mimic",
    "min_max",
    "min_sum",
    "nan",
    "narrow",
    "sign_flip",
    "zero",
]

FloatMatrix = npt.NDArray[np.float32]
FloatVector = npt.NDArray[np.float32]
Defence = Callable[[FloatMatrix], FloatVector]
"""From all n updates (n, d), the liars' last, to the aggregate (d,)."""

Wide = npt.NDArray[np.float64]

BLOCK = 1 << 16
"""Columns that are float64 at one time."""

LIMIT = float(np.finfo(np.float32).max)

PERTURBATIONS = ("std", "unit-vector", "sign")
"""The directions p of min-max and min-sum; the parameter holds the index."""

HALVINGS = 80


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """What a craft may use: the known honest updates (m, d) float32, `count` liars among `members`."""

    known: FloatMatrix
    count: int
    members: int
    rng: np.random.Generator
    chosen: Mapping[str, float]
    defence: Defence | None


Craft = Callable[[Situation], FloatMatrix]
"""Answers with `count` rows, or with one row that every liar sends."""


def narrow(values: Wide) -> FloatVector:
    """float64 to float32; what is beyond float32 becomes its largest. NaN stays NaN."""
    return np.clip(values, -LIMIT, LIMIT).astype(np.float32)


def column_blocks(size: int) -> Iterator[slice]:
    """The columns 0 to size - 1 in blocks."""
    yield from (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def centred_blocks(known: FloatMatrix) -> Iterator[tuple[slice, Wide, Wide]]:
    """Columns by columns: the slice, its mean (c,) and the known updates less that mean (m, c), float64."""
    for columns in column_blocks(known.shape[1]):
        wide = known[:, columns].astype(np.float64)
        mean: Wide = wide.mean(axis=0)
        wide -= mean
        yield columns, mean, wide


def _deviation(residual: Wide) -> Wide:
    return np.asarray(np.sqrt(np.square(residual).mean(axis=0)), np.float64)


def mean_and_deviation(known: FloatMatrix) -> tuple[Wide, Wide]:
    """Mean and standard deviation (of the population, divisor m) of each column, two rows (d,) float64."""
    mean, deviation = np.empty(known.shape[1]), np.empty(known.shape[1])
    for columns, centre, residual in centred_blocks(known):
        mean[columns], deviation[columns] = centre, _deviation(residual)
    return mean, deviation


def _scaled_mean(scene: Situation, factor: float) -> FloatMatrix:
    sent = np.empty((1, scene.known.shape[1]), np.float32)
    for columns in column_blocks(sent.size):
        sent[0, columns] = narrow(factor * scene.known[:, columns].mean(axis=0, dtype=np.float64))
    return sent


def sign_flip(scene: Situation) -> FloatMatrix:
    """-strength * mean of the updates that the liar knows: its own, when it knows one
    (Li, Xu, Chen, Giannakis, Ling 2019, "RSA")."""
    return _scaled_mean(scene, -scene.chosen["strength"])


def inner_product(scene: Situation) -> FloatMatrix:
    """Inner-product manipulation: -epsilon * mean of the known updates. Where a rule lets enough of it
    through, the inner product of aggregate and true mean turns negative (Xie, Koyejo, Gupta 2020, "Fall of
    Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation")."""
    return _scaled_mean(scene, -scene.chosen["epsilon"])


def fall_of_empires(scene: Situation) -> FloatMatrix:
    """(1 - factor) * mean of the known updates: the mean plus factor times the reversed mean. This is exactly
    inner-product with epsilon = factor - 1, so the default 1.1 is epsilon 0.1 (the attack of Xie, Koyejo,
    Gupta 2020 with the factor as El Mhamdi, Guerraoui, Rouault 2021, "Distributed Momentum for
    Byzantine-resilient SGD", count it; so does ByzFL's FallOfEmpires, which calls it tau)."""
    return _scaled_mean(scene, 1.0 - scene.chosen["factor"])


def a_little_is_enough(scene: Situation) -> FloatMatrix:
    """mean - z * standard deviation of the known updates, coordinate by coordinate; z from
    `little_is_enough_z` of members and liars unless given (Baruch, Baruch, Goldberg 2019, algorithm 3;
    population deviation, where ByzFL divides by m - 1 and adds instead of subtracting)."""
    z = scene.chosen["z"] if "z" in scene.chosen else little_is_enough_z(scene.members, scene.count)
    sent = np.empty((1, scene.known.shape[1]), np.float32)
    for columns, mean, residual in centred_blocks(scene.known):
        sent[0, columns] = narrow(mean - z * _deviation(residual))
    return sent


def little_is_enough_z(n: int, f: int) -> float:
    """z_max = Phi^-1((n - f - s) / (n - f)) with s = floor(n / 2 + 1) - f supporters needed.

    Raises AttackInvalid when the fraction is not inside (0, 1): too many or too few liars.
    """
    supporters = n // 2 + 1 - f
    fraction = (n - f - supporters) / (n - f) if n > f else 0.0
    if not 0.0 < fraction < 1.0:
        raise AttackInvalid(f"z has no default for {f} liars of {n}; give the parameter z")
    return NormalDist().inv_cdf(fraction)


def gaussian(scene: Situation) -> FloatMatrix:
    """Independent normal noise of mean 0 and standard deviation std, whatever the honest updates
    (Blanchard, El Mhamdi, Guerraoui, Stainer 2017, section 5)."""
    noise = scene.rng.standard_normal((scene.count, scene.known.shape[1]), dtype=np.float32)
    noise *= np.float32(min(scene.chosen["std"], LIMIT))
    return np.clip(noise, -LIMIT, LIMIT, out=noise)


def infinity(scene: Situation) -> FloatMatrix:
    """+infinity in every coordinate: one such update makes a mean infinite. An honest peer's codec refuses it
    (the attack that ByzFL calls Inf)."""
    return np.full((1, scene.known.shape[1]), np.inf, np.float32)


def nan(scene: Situation) -> FloatMatrix:
    """NaN in every coordinate: no comparison with it holds, so distances and sorts that were not made for it
    fail in silence. An honest peer's codec refuses it (the attack "nan" in the published code of El Mhamdi,
    Guerraoui, Rouault 2021)."""
    return np.full((1, scene.known.shape[1]), np.nan, np.float32)


def zero(scene: Situation) -> FloatMatrix:
    """0 in every coordinate: the free rider, who takes the model and gives nothing (Lin, Du, Liu 2019,
    "Free-riders in Federated Learning: Attacks and Defenses")."""
    return np.zeros((1, scene.known.shape[1]), np.float32)


def copy(scene: Situation) -> FloatMatrix:
    """x_victim: the plagiarist, who passes off an honest member's update of this round as its own (the Sybils
    of Fung, Yoon, Beschastnikh 2020 send equal updates too). `victim` is a row of the known updates.

    Raises AttackInvalid when there is no such row.
    """
    victim = int(scene.chosen["victim"])
    if victim >= len(scene.known):
        raise AttackInvalid(f"copy: victim is {victim}, expected 0 to {len(scene.known) - 1}")
    return scene.known[[victim]].astype(np.float32, copy=False)


def mimic(scene: Situation) -> FloatMatrix:
    """x_i with i = argmax |z . x_i|, ties to the lowest i, where the unit vector z maximises
    z' (sum_j (x_j - mean)(x_j - mean)') z: all liars copy one honest member, so that its data counts too much
    (Karimireddy, He, Jaggi 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    section 3 and appendix; their sums over warm-up rounds are this round's alone here).

    z is the result of `steps` power iterations from a seeded combination of the x_j - mean, worked out on
    their m x m inner products.
    """
    size = len(scene.known)
    gram, along_mean = np.zeros((size, size)), np.zeros(size)
    for _, mean, residual in centred_blocks(scene.known):
        gram += residual @ residual.T
        along_mean += residual @ mean
    weights = scene.rng.standard_normal(size)
    for _ in range(int(scene.chosen["steps"])):
        weights = gram @ weights
        length = float(np.linalg.norm(weights))
        if length == 0.0:
            break
        weights /= length
    alignment = np.abs(gram @ weights + along_mean @ weights)
    return scene.known[[int(np.argmax(alignment))]].astype(np.float32, copy=False)


def min_max(scene: Situation) -> FloatMatrix:
    """mean + gamma p with the largest gamma for which no known update is farther from the lie than two known
    updates are from each other: max_i |m - x_i| <= max_ij |x_i - x_j| (Shejwalkar, Houmansadr 2021,
    "Manipulating the Byzantine", section IV; gamma by bisection). p is minus the standard deviation ("std"),
    minus the mean's direction ("unit-vector") or minus the mean's signs ("sign")."""
    spread = _Spread.of(scene)
    limit = float(spread.pairwise().max())
    return _perturbed(scene, spread.largest_factor(lambda distances: float(distances.max()), limit))


def min_sum(scene: Situation) -> FloatMatrix:
    """mean + gamma p with the largest gamma for which the squared distances of the lie to the known updates
    sum to no more than those of some known update: sum_i |m - x_i|^2 <= max_i sum_j |x_i - x_j|^2
    (Shejwalkar, Houmansadr 2021, section IV; gamma by bisection, p as for min-max)."""
    spread = _Spread.of(scene)
    limit = float(spread.pairwise().sum(axis=1).max())
    return _perturbed(scene, spread.largest_factor(lambda distances: float(distances.sum()), limit))


@dataclass(frozen=True, slots=True, eq=False)
class _Spread:
    """All that the distances of mean + gamma p to the known updates depend on, in float64."""

    gram: Wide
    """Inner products of the x_i - mean, (m, m)."""
    along: Wide
    """p . (x_i - mean), (m,)."""
    square: float
    """p . p"""

    @classmethod
    def of(cls, scene: Situation) -> _Spread:
        size = len(scene.known)
        gram, along, square = np.zeros((size, size)), np.zeros(size), 0.0
        for _, mean, residual in centred_blocks(scene.known):
            direction = _perturbation(scene, mean, residual)
            gram += residual @ residual.T
            along += residual @ direction
            square += float(direction @ direction)
        return cls(gram, along, square)

    def pairwise(self) -> Wide:
        """Squared distances between the known updates, (m, m)."""
        squares = np.diagonal(self.gram)
        return np.maximum(squares[:, np.newaxis] + squares - 2 * self.gram, 0.0)

    def largest_factor(self, measure: Callable[[Wide], float], limit: float) -> float:
        """The largest gamma with measure(squared distances) <= limit, from below, to float64's resolution.

        The measure is convex in gamma and within the limit at 0, so the gammas that are form an interval.
        They are at most 2 sqrt(limit) / |p|: no update is farther than sqrt(limit) from mean or lie.
        """
        if not (self.square > 0.0 and limit > 0.0):
            return 0.0
        inside, outside = 0.0, 2.0 * float(np.sqrt(limit / self.square))
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            distances = np.diagonal(self.gram) - 2 * middle * self.along + middle * middle * self.square
            if measure(distances) <= limit:
                inside = middle
            else:
                outside = middle
        return inside


def _perturbation(scene: Situation, mean: Wide, residual: Wide) -> Wide:
    """p on a block of columns. The unit vector stands unscaled: gamma absorbs the mean's length."""
    kind = PERTURBATIONS[int(scene.chosen["perturbation"])]
    if kind == "std":
        return -_deviation(residual)
    return -mean if kind == "unit-vector" else -np.sign(mean)


def _perturbed(scene: Situation, factor: float) -> FloatMatrix:
    sent = np.empty((1, scene.known.shape[1]), np.float32)
    for columns, mean, residual in centred_blocks(scene.known):
        sent[0, columns] = narrow(mean + factor * _perturbation(scene, mean, residual))
    return sent
