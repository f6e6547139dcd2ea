"""What liars send, for experiments and demonstrations: functions of their inputs and a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import AttackInvalid

FloatMatrix = npt.NDArray[np.float32]
_Craft = Callable[[FloatMatrix, int, np.random.Generator, Mapping[str, float]], npt.NDArray[np.float64]]


class AttackTarget(Enum):
    """What an attack falsifies."""

    UPDATES = "updates"
    LABELS = "labels"


@dataclass(frozen=True, slots=True)
class AttackParameter:
    """A number of an attack; `default` None means that the attack works one out from n and f."""

    name: str
    default: float | None
    meaning: str


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack by name. `craft` is None when it falsifies labels instead of updates."""

    name: str
    target: AttackTarget
    parameters: tuple[AttackParameter, ...]
    documentation: str
    craft: _Craft | None


def _sign_flip(
    honest: FloatMatrix, count: int, rng: np.random.Generator, chosen: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """-strength times the mean of the updates that the liar knows: its own, when it knows one
    (Li et al. 2019, "RSA")."""
    return np.tile(-chosen["strength"] * honest.mean(axis=0, dtype=np.float64), (count, 1))


def _inner_product(
    honest: FloatMatrix, count: int, rng: np.random.Generator, chosen: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """Inner-product manipulation: -epsilon times the mean of the honest updates, small enough to hide
    (Xie, Koyejo, Gupta 2020, "Fall of Empires")."""
    return np.tile(-chosen["epsilon"] * honest.mean(axis=0, dtype=np.float64), (count, 1))


def _a_little_is_enough(
    honest: FloatMatrix, count: int, rng: np.random.Generator, chosen: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """mean - z * standard deviation of the honest updates, coordinate by coordinate
    (Baruch, Baruch, Goldberg 2019, algorithm 3; z from `little_is_enough_z` unless given)."""
    z = chosen["z"] if "z" in chosen else little_is_enough_z(len(honest) + count, count)
    wide = honest.astype(np.float64)
    return np.tile(wide.mean(axis=0) - z * wide.std(axis=0), (count, 1))


def _gaussian(
    honest: FloatMatrix, count: int, rng: np.random.Generator, chosen: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """Independent normal noise of mean 0 and standard deviation std, whatever the honest updates
    (Blanchard et al. 2017, section 5)."""
    return rng.normal(0.0, chosen["std"], (count, honest.shape[1]))


def little_is_enough_z(n: int, f: int) -> float:
    """z_max = Phi^-1((n - f - s) / (n - f)) with s = floor(n / 2 + 1) - f supporters needed.

    Raises AttackInvalid when the fraction is not inside (0, 1): too many or too few liars.
    """
    supporters = n // 2 + 1 - f
    fraction = (n - f - supporters) / (n - f) if n > f else 0.0
    if not 0.0 < fraction < 1.0:
        raise AttackInvalid(f"z has no default for {f} liars of {n}; give the parameter z")
    return NormalDist().inv_cdf(fraction)


def flip_labels(labels: npt.NDArray[np.integer], classes: int) -> npt.NDArray[np.int64]:
    """y -> classes - 1 - y for labels 0 to classes - 1, same shape, int64 (Fang et al. 2020).

    Raises AttackInvalid when a label is outside that range.
    """
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise AttackInvalid(f"labels lie in [{labels.min()}, {labels.max()}], expected [0, {classes - 1}]")
    return np.asarray(classes - 1 - labels.astype(np.int64))


def _named(name: str, craft: _Craft, *parameters: AttackParameter) -> Attack:
    return Attack(name, AttackTarget.UPDATES, parameters, (craft.__doc__ or "").strip(), craft)


ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        _named("sign-flip", _sign_flip, AttackParameter("strength", 1.0, "factor of the flipped update")),
        _named(
            "inner-product", _inner_product, AttackParameter("epsilon", 0.5, "factor of the flipped mean")
        ),
        _named(
            "little-is-enough",
            _a_little_is_enough,
            AttackParameter("z", None, "standard deviations to move; from n and f when left out"),
        ),
        _named("gaussian", _gaussian, AttackParameter("std", 1.0, "standard deviation of the noise")),
        Attack("label-flip", AttackTarget.LABELS, (), (flip_labels.__doc__ or "").strip(), None),
    )
}
"""Every attack by the name that configuration and command line use."""


def resolve_parameters(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """The attack's parameters with defaults filled in. Raises AttackInvalid for an unknown one."""
    attack = ATTACKS.get(name)
    if attack is None:
        raise AttackInvalid(f"no attack {name!r}; known: {', '.join(ATTACKS)}")
    known = {parameter.name for parameter in attack.parameters}
    for parameter, value in given.items():
        if parameter not in known:
            raise AttackInvalid(
                f"{name} has no parameter {parameter!r}; known: {', '.join(sorted(known)) or 'none'}"
            )
        if not isfinite(value) or (parameter == "std" and value < 0):
            raise AttackInvalid(f"{name}: {parameter} is {value}, expected a finite number, std at least 0")
    defaults = {p.name: p.default for p in attack.parameters if p.default is not None}
    return {**defaults, **given}


def craft_updates(
    name: str,
    honest: FloatMatrix,
    count: int,
    rng: np.random.Generator,
    parameters: Mapping[str, float] | None = None,
) -> FloatMatrix:
    """What `count` liars send who know `honest` (n_honest, d) float32: a float32 array (count, d).

    A liar alone knows its own honest update: honest of shape (1, d). Values beyond float32 become its
    largest. Raises AttackInvalid for an unknown attack or parameter, one on labels, no honest update.
    """
    chosen = resolve_parameters(name, parameters or {})
    craft = ATTACKS[name].craft
    if craft is None:
        raise AttackInvalid(f"{name} falsifies labels in training, not updates; use flip_labels")
    if honest.ndim != 2 or len(honest) < 1 or count < 1:
        raise AttackInvalid(
            f"expected honest updates (n, d) and count >= 1, found {honest.shape} and {count}"
        )
    limit = float(np.finfo(np.float32).max)
    return np.clip(craft(honest, count, rng, chosen), -limit, limit).astype(np.float32)
