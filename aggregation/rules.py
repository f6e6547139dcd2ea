"""The rules by name, and the specification of one, as configuration, command line and chain refer to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from folkmoot.aggregation import coordinate_rules, gram_rules
from folkmoot.aggregation.backend import MAX_TOTAL_WEIGHT, MAX_UPDATES
from folkmoot.aggregation.errors import RuleInvalid, TooFewUpdates
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.plans import Combination, Plan

MAX_FAULTY = MAX_UPDATES - 1
MAX_CAP = MAX_TOTAL_WEIGHT // MAX_UPDATES


@dataclass(frozen=True, slots=True)
class RuleParameter:
    """An integer parameter of a rule, both bounds included; an optional one may be left out."""

    name: str
    least: int
    most: int
    optional: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class CoordinateRule:
    """A rule that plans the pass over the columns from n, f, its parameters and claimed examples alone.

    `slope` and `offset` give the fewest updates that f liars allow: slope * f + offset.
    """

    name: str
    plan: Callable[[int, int, Mapping[str, int], Sequence[int] | None], Plan]
    slope: int
    offset: int
    parameters: tuple[RuleParameter, ...] = ()

    @property
    def documentation(self) -> str:
        """Formula and source."""
        return (self.plan.__doc__ or "").strip()


@dataclass(frozen=True, slots=True)
class GramRule:
    """A rule that sees the Gram matrix, f and its parameters, and answers with a combination of updates.

    `slope` and `offset` as for CoordinateRule.
    """

    name: str
    combine: Callable[[Gram, int, Mapping[str, int]], Combination]
    slope: int
    offset: int
    parameters: tuple[RuleParameter, ...] = ()

    @property
    def documentation(self) -> str:
        """Formula and source."""
        return (self.combine.__doc__ or "").strip()


Rule = CoordinateRule | GramRule

_CAP = RuleParameter("cap", 1, MAX_CAP, False, "most examples that one member's claim may count for")
_M = RuleParameter("m", 1, MAX_UPDATES, True, "updates to average; n - f when left out")

_ALL: tuple[Rule, ...] = (
    CoordinateRule("mean", coordinate_rules.mean, 0, 1),
    CoordinateRule("weighted-mean", coordinate_rules.weighted_mean, 0, 1, (_CAP,)),
    CoordinateRule("median", coordinate_rules.median, 2, 1),
    CoordinateRule("trimmed-mean", coordinate_rules.trimmed_mean, 2, 1),
    GramRule("krum", gram_rules.krum, 2, 3),
    GramRule("multi-krum", gram_rules.multi_krum, 2, 3, (_M,)),
)

RULES: dict[str, Rule] = {rule.name: rule for rule in _ALL}
"""Every rule by the name that configuration, command line and chain share."""


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule, the number f of liars it must survive, and its parameters sorted by name.

    Raises RuleInvalid for an unknown rule and for a parameter that is missing, unknown or out of range.
    """

    name: str
    f: int
    params: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        rule = RULES.get(self.name) if isinstance(self.name, str) else None
        if rule is None:
            raise RuleInvalid(f"no rule {self.name!r}; known: {', '.join(RULES)}")
        if type(self.f) is not int or not 0 <= self.f <= MAX_FAULTY:
            raise RuleInvalid(f"f is {self.f!r}, expected 0 to {MAX_FAULTY}")
        names = [name for name, _ in self.params]
        if names != sorted(set(names)):
            raise RuleInvalid(f"{self.name}: parameters must be distinct and sorted by name, found {names}")
        known = {parameter.name: parameter for parameter in rule.parameters}
        for name, value in self.params:
            parameter = known.get(name)
            if parameter is None:
                raise RuleInvalid(
                    f"{self.name} has no parameter {name!r}; known: {', '.join(known) or 'none'}"
                )
            if type(value) is not int or not parameter.least <= value <= parameter.most:
                raise RuleInvalid(
                    f"{self.name}: {name} is {value!r}, expected {parameter.least} to {parameter.most}"
                )
        for parameter in rule.parameters:
            if not parameter.optional and parameter.name not in names:
                raise RuleInvalid(f"{self.name} needs the parameter {parameter.name}: {parameter.meaning}")

    @property
    def rule(self) -> Rule:
        return RULES[self.name]

    def canonical(self) -> bytes:
        """ASCII "name f=1 m=5": the same bytes for the same rule, everywhere."""
        return " ".join([self.name, *(f"{k}={v}" for k, v in (("f", self.f), *self.params))]).encode("ascii")

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of `canonical()`."""
        return hashlib.sha256(self.canonical()).digest()

    def to_document(self) -> dict[str, object]:
        """Plain values for a canonical codec: name, f and a map of parameters."""
        return {"f": self.f, "name": self.name, "params": dict(self.params)}

    @classmethod
    def from_document(cls, document: object) -> RuleSpec:
        """Read what `to_document` wrote. Raises RuleInvalid for anything else."""
        if not isinstance(document, dict) or set(document) != {"f", "name", "params"}:
            raise RuleInvalid("a rule is a map of exactly f, name and params")
        params = document["params"]
        if not isinstance(params, dict) or not all(isinstance(name, str) for name in params):
            raise RuleInvalid("a rule's params are a map from names to integers")
        return cls(document["name"], document["f"], tuple(sorted(params.items())))


def minimum_updates(spec: RuleSpec) -> int:
    """The fewest updates with which the rule is defined and its guarantee holds.

    mean, weighted-mean 1; median, trimmed-mean 2f + 1; krum 2f + 3; multi-krum max(2f + 3, m).
    """
    return max(spec.rule.slope * spec.f + spec.rule.offset, dict(spec.params).get("m", 0))


def require_enough(spec: RuleSpec, count: int) -> None:
    """Raise TooFewUpdates when `count` updates are fewer than `minimum_updates`."""
    if count < minimum_updates(spec):
        raise TooFewUpdates(
            f"{spec.name} with f = {spec.f} needs {minimum_updates(spec)} updates, found {count}; "
            "wait for more members or lower f"
        )
