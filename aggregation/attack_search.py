"""Attacks that try their factor on the defence and keep the one that does most harm.

The search is deterministic and calls the defence a bounded number of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.attack_crafts import (
    Defence,
    FloatMatrix,
    FloatVector,
    Situation,
    column_blocks,
    mean_and_deviation,
    narrow,
)
from folkmoot.aggregation.errors import AttackInvalid

__all__ = ["optimised_inner_product", "optimised_little_is_enough", "strongest_factor"]


def optimised_inner_product(scene: Situation) -> FloatMatrix:
    """-epsilon * mean of the known updates with the epsilon >= 0 that moves the defended aggregate farthest
    from that mean, found by `strongest_factor` (the attack of Xie, Koyejo, Gupta 2020 with a line search on
    the defence, as Shejwalkar, Houmansadr 2021 propose for known rules).

    Raises AttackInvalid without a defence.
    """
    mean = scene.known.mean(axis=0, dtype=np.float64)
    return _strongest(scene, mean, lambda epsilon: narrow(-epsilon * mean))


def optimised_little_is_enough(scene: Situation) -> FloatMatrix:
    """mean - z * standard deviation of the known updates with the z >= 0 that moves the defended aggregate
    farthest from the mean, found by `strongest_factor` (the attack of Baruch, Baruch, Goldberg 2019 with a
    line search on the defence, as Shejwalkar, Houmansadr 2021 propose for known rules).

    Raises AttackInvalid without a defence.
    """
    mean, deviation = mean_and_deviation(scene.known)
    return _strongest(scene, mean, lambda z: narrow(mean - z * deviation))


def strongest_factor(harm: Callable[[float], float], evaluations: int) -> float:
    """The factor >= 0 of the largest harm seen in at most `evaluations` (at least 1) calls of `harm`.

    From 0 the steps 1, 2, 4, ... go on while the harm grows; then each halved step is tried to either side of
    the best factor. Harm with one peak is found to within the last step, other harm at some local maximum.
    Equal harm keeps the factor that was tried first; NaN counts as none.
    """
    best, most, spent = 0.0, -math.inf, 0

    def improves(factor: float) -> bool:
        nonlocal best, most, spent
        if factor < 0.0 or spent == evaluations:
            return False
        spent += 1
        found = harm(factor)
        if not found > most:
            return False
        best, most = factor, found
        return True

    improves(0.0)
    step = 1.0
    while improves(best + step):
        step *= 2
    while spent < evaluations:
        step /= 2
        if not improves(best + step):
            improves(best - step)
    return best


def _strongest(
    scene: Situation, mean: npt.NDArray[np.float64], lie: Callable[[float], FloatVector]
) -> FloatMatrix:
    """The lie with the strongest factor, (1, d).

    Liars who know fewer updates than there are honest members repeat those they know in their places.
    """
    defence = scene.defence
    if defence is None:
        raise AttackInvalid(
            "an optimised factor needs the defence: a function from all updates to the aggregate"
        )
    honest = scene.members - scene.count
    updates = np.empty((scene.members, scene.known.shape[1]), np.float32)
    for row in range(honest):
        updates[row] = scene.known[row % len(scene.known)]

    def harm(factor: float) -> float:
        updates[honest:] = lie(factor)
        return _squared_distance(defence, updates, mean)

    return lie(strongest_factor(harm, int(scene.chosen["evaluations"])))[np.newaxis]


def _squared_distance(defence: Defence, updates: FloatMatrix, mean: npt.NDArray[np.float64]) -> float:
    aggregate = np.asarray(defence(updates))
    if aggregate.shape != mean.shape:
        raise AttackInvalid(f"the defence answered with shape {aggregate.shape}, expected {mean.shape}")
    total = 0.0
    for columns in column_blocks(len(mean)):
        gap = aggregate[columns].astype(np.float64) - mean[columns]
        total += float(gap @ gap)
    return total
