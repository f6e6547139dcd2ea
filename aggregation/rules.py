"""The rules by name, and the specification of one, as configuration, command line and chain refer to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from folkmoot.aggregation import (
    averaging_rules,
    coordinate_rules,
    preaggregators,
    selection_rules,
    spectral_rules,
)
from folkmoot.aggregation.case import Case, Looks
from folkmoot.aggregation.errors import RuleInvalid, TooFewUpdates
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.plans import MAX_TOTAL_WEIGHT, MAX_UPDATES, Decision, Mixing

MAX_FAULTY = MAX_UPDATES - 1
MAX_CAP = MAX_TOTAL_WEIGHT // MAX_UPDATES
MILLION = 10**6
MAX_PREAGGREGATORS = 8
_MOST_DIGITS = 400
_MAX_LENGTH = 10**15
"""A length parameter of at most 10^9 in the model's unit."""


@dataclass(frozen=True, slots=True)
class RuleParameter:
    """An integer parameter of a rule, both bounds included. `default` None and `optional`: may be missing.

    With `millionths` it stands for a real number: configuration and command line write 1.5, the
    specification keeps 1500000.
    """

    name: str
    least: int
    most: int
    optional: bool
    meaning: str
    default: int | None = None
    millionths: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: from a `Case` it decides what to take of the columns.

    It needs slope * f + offset updates or more. `looks_at` says what the case has to hold of the Gram matrix.
    """

    name: str
    decide: Callable[[Case], Decision]
    slope: int
    offset: int
    parameters: tuple[RuleParameter, ...] = ()
    looks_at: Looks = Looks.DISTANCES

    @property
    def documentation(self) -> str:
        """Formula and source."""
        return (self.decide.__doc__ or "").strip()


@dataclass(frozen=True, slots=True)
class Preaggregator:
    """What is done to the updates before a rule: a mixing, from Gram matrix, f, parameters and seed."""

    name: str
    mix: Callable[[Gram, int, Mapping[str, int], bytes], Mixing]
    documentation: str
    parameters: tuple[RuleParameter, ...] = ()


_CAP = RuleParameter("cap", 1, MAX_CAP, False, "most examples that one member's claim may count for")
_OPTIONAL_CAP = RuleParameter(
    "cap", 1, MAX_CAP, True, "most examples that a claim may count for; equal weights without"
)
_M = RuleParameter("m", 1, MAX_UPDATES, True, "updates to average; n - f when left out")
_EXCLUDED = RuleParameter("excluded", 1, 2, True, "the score sums n - f - excluded distances; ByzFL's 1", 2)
_POWER = RuleParameter("power", 1, 2, True, "of the distances: 2 squared, 1 as they are", 2)
_STEPS = RuleParameter("steps", 1, 64, True, "iterations", 8)
_TAU = RuleParameter("tau", 0, _MAX_LENGTH, False, "longest allowed length", None, True)
_OPTIONAL_TAU = RuleParameter(
    "tau", 0, _MAX_LENGTH, True, "longest norm; the median norm without", None, True
)
_NU = RuleParameter("nu", 1, _MAX_LENGTH, True, "smallest distance", 1, True)
_HISTORY = RuleParameter("history", 0, 1, True, "1: start from the aggregate before this one", 0)
_PIVOT = RuleParameter("pivot", 0, MAX_UPDATES - 1, True, "index of the trusted update", 0)
_SIZE = RuleParameter("s", 1, MAX_UPDATES, False, "updates in a bucket")

_ALL: tuple[Rule, ...] = (
    Rule("mean", coordinate_rules.mean, 0, 1, (), Looks.NOTHING),
    Rule("weighted-mean", coordinate_rules.weighted_mean, 0, 1, (_CAP,), Looks.NOTHING),
    Rule(
        "clipped-weighted-mean", averaging_rules.clipped_weighted_mean, 0, 1, (_CAP, _OPTIONAL_TAU), Looks.ROW
    ),
    Rule("median", coordinate_rules.median, 2, 1, (), Looks.NOTHING),
    Rule("weighted-median", coordinate_rules.weighted_median, 2, 1, (_CAP,), Looks.NOTHING),
    Rule("trimmed-mean", coordinate_rules.trimmed_mean, 2, 1, (), Looks.NOTHING),
    Rule("weighted-trimmed-mean", coordinate_rules.weighted_trimmed_mean, 2, 1, (_CAP,), Looks.NOTHING),
    Rule("meamed", coordinate_rules.meamed, 2, 1, (), Looks.NOTHING),
    Rule("phocas", coordinate_rules.phocas, 2, 1, (), Looks.NOTHING),
    Rule("krum", selection_rules.krum, 2, 3, (_EXCLUDED, _POWER)),
    Rule("multi-krum", selection_rules.multi_krum, 2, 3, (_OPTIONAL_CAP, _EXCLUDED, _M, _POWER)),
    Rule("bulyan", selection_rules.bulyan, 4, 3),
    Rule("geometric-median", averaging_rules.geometric_median, 2, 1, (_STEPS,)),
    Rule("rfa", averaging_rules.rfa, 2, 1, (_OPTIONAL_CAP, _NU, _STEPS)),
    Rule(
        "centered-clipping",
        averaging_rules.centered_clipping,
        2,
        1,
        (_HISTORY, RuleParameter("steps", 1, 64, True, "iterations", 1), _TAU),
    ),
    Rule("mda", selection_rules.mda, 2, 1),
    Rule("smea", spectral_rules.smea, 2, 1),
    Rule("monna", selection_rules.monna, 2, 1, (_PIVOT,), Looks.ROW),
    Rule("caf", spectral_rules.caf, 2, 1),
    Rule("foolsgold", averaging_rules.foolsgold, 0, 1),
)

RULES: dict[str, Rule] = {rule.name: rule for rule in _ALL}
"""Every rule by the name that configuration, command line and chain share."""

PREAGGREGATORS: dict[str, Preaggregator] = {
    entry.name: entry
    for entry in (
        Preaggregator(
            "nnm",
            lambda gram, f, _, seed: preaggregators.nnm(gram, f),
            (preaggregators.nnm.__doc__ or "").strip(),
        ),
        Preaggregator(
            "bucketing",
            lambda gram, f, given, seed: preaggregators.bucketing(gram.size, given["s"], seed),
            (preaggregators.bucketing.__doc__ or "").strip(),
            (_SIZE,),
        ),
        Preaggregator(
            "clipping",
            lambda gram, f, given, seed: preaggregators.clipping(gram, given["tau"]),
            (preaggregators.clipping.__doc__ or "").strip(),
            (_TAU,),
        ),
        Preaggregator(
            "arc",
            lambda gram, f, _, seed: preaggregators.arc(gram, f),
            (preaggregators.arc.__doc__ or "").strip(),
        ),
    )
}
"""Every pre-aggregator by name; they compose freely before any rule."""

Parameters = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PreSpec:
    """A pre-aggregator and its parameters sorted by name. Raises RuleInvalid."""

    name: str
    params: Parameters = ()

    def __post_init__(self) -> None:
        known = PREAGGREGATORS.get(self.name) if isinstance(self.name, str) else None
        if known is None:
            raise RuleInvalid(f"no pre-aggregator {self.name!r}; known: {', '.join(PREAGGREGATORS)}")
        _check(self.name, self.params, known.parameters)

    def canonical(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.params)])


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule, the number f of liars it must survive, its parameters sorted by name, and what comes before it.

    Raises RuleInvalid for an unknown rule or pre-aggregator, for a parameter that is missing, unknown or out
    of range, and for weights after bucketing, whose rows are no members.
    """

    name: str
    f: int
    params: Parameters = ()
    pre: tuple[PreSpec, ...] = ()

    def __post_init__(self) -> None:
        rule = RULES.get(self.name) if isinstance(self.name, str) else None
        if rule is None:
            raise RuleInvalid(f"no rule {self.name!r}; known: {', '.join(RULES)}")
        if type(self.f) is not int or not 0 <= self.f <= MAX_FAULTY:
            raise RuleInvalid(f"f is {self.f!r}, expected 0 to {MAX_FAULTY}")
        _check(self.name, self.params, rule.parameters)
        if len(self.pre) > MAX_PREAGGREGATORS:
            raise RuleInvalid(f"{len(self.pre)} pre-aggregators, at most {MAX_PREAGGREGATORS}")
        per_member = "cap" in dict(self.params) or self.name == "monna"
        if per_member and any(entry.name == "bucketing" for entry in self.pre):
            raise RuleInvalid(f"{self.name} tells members apart, and after bucketing there are none")

    @property
    def rule(self) -> Rule:
        return RULES[self.name]

    @property
    def looks_at(self) -> Looks:
        """What rule and pre-aggregators look at; bucketing looks at nothing."""
        if any(entry.name != "bucketing" for entry in self.pre):
            return Looks.DISTANCES
        return self.rule.looks_at

    @property
    def needs_reference(self) -> bool:
        """Whether the rule starts from the aggregate before this one."""
        return dict(self.params).get("history", 0) == 1

    def parameters(self) -> dict[str, int]:
        """The parameters with defaults filled in."""
        defaults = {p.name: p.default for p in self.rule.parameters if p.default is not None}
        return {**defaults, **dict(self.params)}

    def canonical(self) -> bytes:
        """ASCII "arc | nnm | name f=1 m=5": the same bytes for the same rule, everywhere."""
        rule = " ".join([self.name, *(f"{k}={v}" for k, v in (("f", self.f), *self.params))])
        return " | ".join([*(entry.canonical() for entry in self.pre), rule]).encode("ascii")

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of `canonical()`."""
        return hashlib.sha256(self.canonical()).digest()

    def to_document(self) -> dict[str, object]:
        """Plain values for a canonical codec: name, f, a map of parameters, and the pre-aggregators."""
        pre = [{"name": entry.name, "params": dict(entry.params)} for entry in self.pre]
        return {"f": self.f, "name": self.name, "params": dict(self.params), "pre": pre}

    @classmethod
    def from_document(cls, document: object) -> RuleSpec:
        """Read what `to_document` wrote. Raises RuleInvalid for anything else."""
        if not isinstance(document, dict) or set(document) != {"f", "name", "params", "pre"}:
            raise RuleInvalid("a rule is a map of exactly f, name, params and pre")
        listed = document["pre"]
        if not isinstance(listed, list) or len(listed) > MAX_PREAGGREGATORS:
            raise RuleInvalid(f"a rule's pre is a list of at most {MAX_PREAGGREGATORS} pre-aggregators")
        pre = []
        for entry in listed:
            if not isinstance(entry, dict) or set(entry) != {"name", "params"}:
                raise RuleInvalid("a pre-aggregator is a map of exactly name and params")
            pre.append(PreSpec(entry["name"], _sorted(entry["params"])))
        return cls(document["name"], document["f"], _sorted(document["params"]), tuple(pre))


def _sorted(params: object) -> Parameters:
    if not isinstance(params, dict) or not all(isinstance(name, str) for name in params):
        raise RuleInvalid("params are a map from names to integers")
    return tuple(sorted(params.items()))


def _check(owner: str, params: Parameters, known: tuple[RuleParameter, ...]) -> None:
    names = [name for name, _ in params]
    if names != sorted(set(names)):
        raise RuleInvalid(f"{owner}: parameters must be distinct and sorted by name, found {names}")
    by_name = {parameter.name: parameter for parameter in known}
    for name, value in params:
        parameter = by_name.get(name)
        if parameter is None:
            raise RuleInvalid(f"{owner} has no parameter {name!r}; known: {', '.join(by_name) or 'none'}")
        if type(value) is not int or not parameter.least <= value <= parameter.most:
            unit = " millionths" if parameter.millionths else ""
            raise RuleInvalid(
                f"{owner}: {name} is {value!r}, expected {parameter.least} to {parameter.most}{unit}"
            )
    for parameter in known:
        if not parameter.optional and parameter.name not in names:
            raise RuleInvalid(f"{owner} needs the parameter {parameter.name}: {parameter.meaning}")


Number = int | float | str | Fraction


def rule_spec(
    name: str, f: int, params: Mapping[str, Number] | None = None, pre: Sequence[str] = ()
) -> RuleSpec:
    """A specification as people write it: real numbers for lengths, and pre-aggregators as text.

    pre: such as "nnm", "bucketing:s=2", "clipping:tau=1.5". Raises RuleInvalid, also for a length finer than
    a millionth.
    """
    rule = RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise RuleInvalid(f"no rule {name!r}; known: {', '.join(RULES)}")
    return RuleSpec(
        name, f, _written(name, params or {}, rule.parameters), tuple(_written_pre(text) for text in pre)
    )


def _written_pre(text: str) -> PreSpec:
    name, _, rest = text.partition(":")
    known = PREAGGREGATORS.get(name)
    if known is None:
        raise RuleInvalid(f"no pre-aggregator {name!r}; known: {', '.join(PREAGGREGATORS)}")
    given: dict[str, Number] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise RuleInvalid(f"pre-aggregator {text!r}: write name:parameter=value,…")
        given[key] = value
    return PreSpec(name, _written(name, given, known.parameters))


def _written(owner: str, given: Mapping[str, Number], known: tuple[RuleParameter, ...]) -> Parameters:
    real = {parameter.name for parameter in known if parameter.millionths}
    params = []
    for name, value in sorted(given.items()):
        try:
            # The shortest decimal of a float is what its writer meant.
            exact = _fraction(str(value) if isinstance(value, float) else value)
        except (ValueError, TypeError, ArithmeticError):
            raise RuleInvalid(f"{owner}: {name} is {value!r}, expected a number") from None
        if name in real:
            exact *= MILLION
        if exact.denominator != 1:
            finest = "a multiple of 0.000001" if name in real else "a whole number"
            raise RuleInvalid(f"{owner}: {name} is {value!r}, expected {finest}")
        params.append((name, exact.numerator))
    return tuple(params)


def _fraction(value: Number) -> Fraction:
    """Raises ValueError, TypeError, ArithmeticError; also for 1e999999999 and the like."""
    if isinstance(value, str) and "e" in value.lower() and abs(Decimal(value).adjusted()) > _MOST_DIGITS:
        raise ValueError(value)
    return Fraction(value)


def written_rule(spec: RuleSpec) -> tuple[dict[str, int | str], list[str]]:
    """Parameters and pre-aggregators as `rule_spec` reads them: its inverse, with lengths as decimal text."""
    pre = []
    for entry in spec.pre:
        params = _as_written(entry.params, PREAGGREGATORS[entry.name].parameters)
        pre.append(entry.name + ":" * bool(params) + ",".join(f"{k}={v}" for k, v in params.items()))
    return _as_written(spec.params, spec.rule.parameters), pre


def _as_written(params: Parameters, known: tuple[RuleParameter, ...]) -> dict[str, int | str]:
    real = {parameter.name for parameter in known if parameter.millionths}
    return {
        name: f"{Decimal(value).scaleb(-6).normalize():f}" if name in real else value
        for name, value in params
    }


def minimum_updates(spec: RuleSpec) -> int:
    """The fewest updates with which the rule is defined and its guarantee holds.

    slope * f + offset of the rule and its m, that many rows after every pre-aggregator: s (rows - 1) + 1 of
    them make `rows` buckets of s.
    """
    needed = max(spec.rule.slope * spec.f + spec.rule.offset, dict(spec.params).get("m", 0))
    for entry in reversed(spec.pre):
        if entry.name == "bucketing":
            needed = dict(entry.params)["s"] * (needed - 1) + 1
        elif entry.name in ("nnm", "arc"):
            needed = max(needed, spec.f + 1)
    return needed


def require_enough(spec: RuleSpec, count: int) -> None:
    """Raise TooFewUpdates when `count` updates are fewer than `minimum_updates`."""
    if count < minimum_updates(spec):
        raise TooFewUpdates(
            f"{spec.name} with f = {spec.f} needs {minimum_updates(spec)} updates, found {count}; "
            "wait for more members or lower f"
        )
