"""The attacks by name: what each falsifies, knows and needs, and how its parameters are read.

For experiments and demonstrations: functions of their inputs and a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf, isfinite

import numpy as np

from folkmoot.aggregation import attack_crafts as crafts
from folkmoot.aggregation import attack_search, attack_training
from folkmoot.aggregation.attack_crafts import (
    PERTURBATIONS,
    Craft,
    Defence,
    FloatMatrix,
    Situation,
    little_is_enough_z,
)
from folkmoot.aggregation.attack_training import flip_labels, stamp_trigger
from folkmoot.aggregation.errors import AttackInvalid

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackParameter",
    "AttackTarget",
    "Defence",
    "Knowledge",
    "craft_updates",
    "flip_labels",
    "little_is_enough_z",
    "resolve_parameters",
    "stamp_trigger",
    "visible_updates",
]


class AttackTarget(Enum):
    """What an attack falsifies."""

    UPDATES = "updates"
    LABELS = "labels"
    EXAMPLES = "examples"
    """Training inputs and their labels."""


class Knowledge(Enum):
    """What liars have seen when they choose their lie."""

    OMNISCIENT = "omniscient"
    """Every honest update of this round: the liars speak last and nothing was hidden."""
    BLIND = "blind"
    """Their own honest updates only: commitments hide the others' until the lie is bound."""


EVERYTHING = (Knowledge.OMNISCIENT, Knowledge.BLIND)


@dataclass(frozen=True, slots=True)
class AttackParameter:
    """A number of an attack, both bounds included. `default` None: the attack works one out from n and f."""

    name: str
    default: float | None
    meaning: str
    least: float = -inf
    most: float = inf
    whole: bool = False
    """Only integers."""
    choices: tuple[str, ...] = ()
    """Names for 0, 1, ...; a value may be given by either."""

    def read(self, value: float | str) -> float:
        """The value as a number. Raises AttackInvalid when it is none or out of range."""
        if isinstance(value, str) and value in self.choices:
            return float(self.choices.index(value))
        try:
            number = float(value)
        except (OverflowError, TypeError, ValueError):
            raise self._refusal(value) from None
        if not (isfinite(number) and self.least <= number <= self.most):
            raise self._refusal(value)
        if self.whole and not number.is_integer():
            raise self._refusal(value)
        return number

    def _refusal(self, value: object) -> AttackInvalid:
        if self.choices:
            return AttackInvalid(f"{self.name} is {value!r}, expected one of {', '.join(self.choices)}")
        kind = "an integer" if self.whole else "a finite number"
        return AttackInvalid(f"{self.name} is {value!r}, expected {kind} from {self.least} to {self.most}")


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack by name. `craft` is None when it falsifies training data instead of updates."""

    name: str
    target: AttackTarget
    parameters: tuple[AttackParameter, ...]
    documentation: str
    craft: Craft | None
    knowledge: tuple[Knowledge, ...] = EVERYTHING
    """The worlds in which the attack can be carried out."""
    fewest: int = 1
    """Known honest updates without which it means nothing."""
    needs_defence: bool = False
    """Whether it must try the defence."""


def _on_updates(
    name: str,
    craft: Craft,
    *parameters: AttackParameter,
    knowledge: tuple[Knowledge, ...] = EVERYTHING,
    fewest: int = 1,
    needs_defence: bool = False,
) -> Attack:
    documentation = (craft.__doc__ or "").strip()
    return Attack(
        name, AttackTarget.UPDATES, parameters, documentation, craft, knowledge, fewest, needs_defence
    )


def _on_training(
    name: str, target: AttackTarget, function: Callable[..., object], *parameters: AttackParameter
) -> Attack:
    return Attack(name, target, parameters, (function.__doc__ or "").strip(), None)


_EVALUATIONS = AttackParameter("evaluations", 16, "how often the defence is tried", 1, 1_000, whole=True)
_PERTURBATION = AttackParameter(
    "perturbation", 0, "the direction p", 0, len(PERTURBATIONS) - 1, whole=True, choices=PERTURBATIONS
)

_ALL: tuple[Attack, ...] = (
    _on_updates(
        "sign-flip", crafts.sign_flip, AttackParameter("strength", 1.0, "factor of the flipped update")
    ),
    _on_updates(
        "inner-product", crafts.inner_product, AttackParameter("epsilon", 0.5, "factor of the flipped mean")
    ),
    _on_updates(
        "inner-product-optimised", attack_search.optimised_inner_product, _EVALUATIONS, needs_defence=True
    ),
    _on_updates(
        "fall-of-empires",
        crafts.fall_of_empires,
        AttackParameter("factor", 1.1, "epsilon of inner-product, plus 1"),
    ),
    _on_updates(
        "little-is-enough",
        crafts.a_little_is_enough,
        AttackParameter("z", None, "standard deviations to move; from n and f when left out"),
        fewest=2,
    ),
    _on_updates(
        "little-is-enough-optimised",
        attack_search.optimised_little_is_enough,
        _EVALUATIONS,
        fewest=2,
        needs_defence=True,
    ),
    _on_updates(
        "mimic",
        crafts.mimic,
        AttackParameter("steps", 32, "power iterations", 1, 10_000, whole=True),
        fewest=2,
    ),
    _on_updates("min-max", crafts.min_max, _PERTURBATION, fewest=2),
    _on_updates("min-sum", crafts.min_sum, _PERTURBATION, fewest=2),
    _on_updates(
        "gaussian", crafts.gaussian, AttackParameter("std", 1.0, "standard deviation of the noise", 0.0)
    ),
    _on_updates("infinity", crafts.infinity),
    _on_updates("nan", crafts.nan),
    _on_updates("zero", crafts.zero),
    _on_updates(
        "copy",
        crafts.copy,
        AttackParameter("victim", 0, "row of the update to copy", 0, whole=True),
        knowledge=(Knowledge.OMNISCIENT,),
    ),
    _on_training("label-flip", AttackTarget.LABELS, attack_training.flip_labels),
    _on_training(
        "backdoor",
        AttackTarget.EXAMPLES,
        attack_training.stamp_trigger,
        AttackParameter("fraction", 0.2, "share of the examples that get the trigger", 0.0, 1.0),
        AttackParameter("target", 0, "the label that the trigger shall stand for", 0, whole=True),
        AttackParameter("size", 2, "side of the trigger, in pixels", 1, whole=True),
    ),
)

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ALL}
"""Every attack by the name that configuration and command line use."""


def resolve_parameters(name: str, given: Mapping[str, float | str]) -> dict[str, float]:
    """The attack's parameters as numbers, with defaults filled in; a choice may be given by its name.

    Raises AttackInvalid for an unknown attack or parameter, and for a value out of range.
    """
    attack = ATTACKS.get(name)
    if attack is None:
        raise AttackInvalid(f"no attack {name!r}; known: {', '.join(ATTACKS)}")
    known = {parameter.name: parameter for parameter in attack.parameters}
    resolved = {p.name: p.default for p in attack.parameters if p.default is not None}
    for parameter, value in given.items():
        if parameter not in known:
            raise AttackInvalid(
                f"{name} has no parameter {parameter!r}; known: {', '.join(sorted(known)) or 'none'}"
            )
        try:
            resolved[parameter] = known[parameter].read(value)
        except AttackInvalid as refusal:
            raise AttackInvalid(f"{name}: {refusal}") from None
    return resolved


def visible_updates(knowledge: Knowledge, honest: FloatMatrix, own: FloatMatrix) -> FloatMatrix:
    """The matrix that liars see before they choose their lie, one of the two given.

    honest: every honest member's update of this round, (n - count, d). own: what the liars themselves would
    have sent if they were honest, (count, d). Omniscient liars see `honest`. Blind ones, behind commit and
    reveal, see `own`. Raises AttackInvalid when the two have different d.
    """
    if honest.ndim != 2 or own.ndim != 2 or honest.shape[1] != own.shape[1]:
        raise AttackInvalid(f"expected updates (n, d) of one d, found {honest.shape} and {own.shape}")
    return honest if knowledge is Knowledge.OMNISCIENT else own


def craft_updates(
    name: str,
    honest: FloatMatrix,
    count: int,
    rng: np.random.Generator,
    parameters: Mapping[str, float | str] | None = None,
    *,
    defence: Defence | None = None,
    knowledge: Knowledge = Knowledge.OMNISCIENT,
    members: int | None = None,
) -> FloatMatrix:
    """What `count` liars send who know `honest` (m, d) float32: a float32 array (count, d).

    honest: the `visible_updates`; a liar alone knows its own: shape (1, d). defence: for attacks with
    `needs_defence`, from all updates (members, d), the liars' last, to the aggregate (d,); it gets the same
    array each time, with other lies in it. members: of whom `count` lie; m + count when None, which blind
    liars should not leave out. Finite values beyond float32 become its largest; infinity and nan send theirs.

    Raises AttackInvalid for an unknown attack or parameter, one on training data, one that needs more
    knowledge, a defence or more known updates, and for numbers that do not fit.
    """
    chosen = resolve_parameters(name, parameters or {})
    attack = ATTACKS[name]
    if attack.craft is None:
        raise AttackInvalid(f"{name} falsifies {attack.target.value} in training, not updates")
    if knowledge not in attack.knowledge:
        raise AttackInvalid(f"{name} needs to see what {knowledge.value} liars cannot: the others' updates")
    if honest.ndim != 2 or 0 in honest.shape or count < 1:
        raise AttackInvalid(
            f"expected honest updates (n, d) and count >= 1, found {honest.shape} and {count}"
        )
    if len(honest) < attack.fewest:
        raise AttackInvalid(f"{name} needs {attack.fewest} known updates or more, found {len(honest)}")
    total = len(honest) + count if members is None else members
    if total <= count:
        raise AttackInvalid(f"members is {total}, expected more than the {count} liars")
    with np.errstate(over="ignore"):
        sent = attack.craft(Situation(honest, count, total, rng, chosen, defence))
    return sent if len(sent) == count else np.repeat(sent, count, axis=0)
