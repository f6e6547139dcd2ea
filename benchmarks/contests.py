"""What is compared: each rule of ours beside the published function that computes the same, and its input.

A contest names a rule, how many rows it must read at least, and how to call the peers that have it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation import Lattice, Layout, RuleSpec, TensorSpec, needed_exponents, quantize, rule_spec

MAX_SUBSETS = 20_000
"""A peer that visits every subset of members takes hours beyond this."""
CLAIM_CAP = 1000
ROUND_SEED = b"folkmoot/benchmark"
SMALL_RADIUS = 0.000001

Floats = npt.NDArray[np.float32]
Call = Callable[[Floats], Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What rule parameters follow from: n members, f liars, the median norm, the claimed examples."""

    n: int
    f: int
    radius: float
    weights: tuple[int, ...]

    @property
    def bulyan_f(self) -> int:
        """Bulyan needs n >= 4 f + 3."""
        return max(0, (self.n - 3) // 4)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """n updates of d values: float32 of shape (n, d) for the peers, lattice integers for ours."""

    facts: Facts
    layout: Layout
    lattice: Lattice
    floats: Floats
    integers: list[npt.NDArray[Any]]

    @property
    def name(self) -> str:
        return f"n = {self.facts.n}, d = {self.layout.size:,}"


def make_layout(values: int, tensors: int = 12) -> Layout:
    """`values` floats in tensors that grow quadratically, as biases and matrices do."""
    cuts = sorted({round(values * (k / tensors) ** 2) for k in range(tensors + 1)})
    return Layout(tuple(TensorSpec(f"t{a}", (b - a,)) for a, b in itertools.pairwise(cuts)))


def make_facts(n: int, radius: float, seed: int) -> Facts:
    claims = np.random.default_rng([seed, n]).integers(500, 1001, n)
    return Facts(n, n // 5, radius, tuple(int(claim) for claim in claims))


def make_case(n: int, values: int, bits: int, seed: int, tensors: int = 12) -> Case:
    """Updates of a shared direction and noise of equal size; the last f members send minus twice theirs."""
    layout = make_layout(values, tensors)
    rng = np.random.default_rng([seed, n, values])
    scales = np.concatenate(
        [np.full(t.size, 0.01 * 2.0 ** -(k % 6), np.float32) for k, t in enumerate(layout.tensors)]
    )
    shared = rng.standard_normal(values, np.float32)
    floats = np.empty((n, values), np.float32)
    for index in range(n):
        rng.standard_normal(out=floats[index], dtype=np.float32)
        floats[index] += shared
        floats[index] *= scales
        if index >= n - n // 5:
            floats[index] *= np.float32(-2.0)
    needed = [needed_exponents(row, layout, bits) for row in floats]
    lattice = Lattice(bits, tuple(max(column) for column in zip(*needed, strict=True)))
    radius = round(float(np.median([np.linalg.norm(row) for row in floats])), 6)
    integers = [quantize(row, layout, lattice) for row in floats]
    return Case(make_facts(n, max(radius, 2e-6), seed), layout, lattice, floats, integers)


def repeated(case: Case, values: int, *, wanted: str) -> Case:
    """The same updates repeated up to `values` columns, as `wanted`: "floats" or "integers" alone."""
    layout = Layout((TensorSpec("repeated", (values,)),))
    lattice = Lattice(case.lattice.bits, (max(case.lattice.exponents),))
    facts = make_facts(case.facts.n, case.facts.radius * math.sqrt(values / case.layout.size), 0)
    floats = np.empty((0, 0), np.float32)
    integers: list[npt.NDArray[Any]] = []
    if wanted == "floats":
        floats = np.empty((facts.n, values), np.float32)
        for target, row in zip(floats, case.floats, strict=True):
            target[:] = np.resize(row, values)
    else:
        integers = [np.resize(row, values) for row in case.integers]
    return Case(facts, layout, lattice, floats, integers)


FlowerResults = list[tuple[list[Floats], int]]


@dataclass(frozen=True, slots=True)
class Contest:
    """A rule of ours and the peers' calls for it; None where a peer has no such rule.

    `rows`: how many rows of the input have to be read, counted over all passes. `copies`: how many float32
    copies of its input ByzFL holds at once. `subsets`: ByzFL visits every subset of n - f members.
    `overwrites`: ByzFL writes into its input. `random`: the peer's own randomness makes its result differ.
    """

    label: str
    spec: Callable[[Facts], RuleSpec]
    rows: Callable[[int, int], int]
    byzfl: Callable[[Any, Facts], Call] | None = None
    flower: Callable[[Any, Facts, FlowerResults], list[Floats]] | None = None
    weighted: bool = False
    copies: Callable[[int, int], int] = lambda n, f: 5
    subsets: bool = False
    overwrites: bool = False
    random: bool = False


def _rule(
    name: str, params: Mapping[str, int | float | str | Fraction] | None = None, pre: Sequence[str] = ()
) -> Callable[[Facts], RuleSpec]:
    return lambda facts: rule_spec(name, facts.f, params or {}, pre)


def _once(n: int, f: int) -> int:
    return n


def _twice(n: int, f: int) -> int:
    return 2 * n


def _and_one(n: int, f: int) -> int:
    return n + 1


def _and_chosen(n: int, f: int) -> int:
    return 2 * n - f


def _chain(first: Call, second: Call) -> Call:
    return lambda vectors: second(first(vectors))


def _geometric(name: str, steps: int, nu: float | None) -> Contest:
    params: dict[str, int | float | str | Fraction] = {"steps": steps}
    if nu is not None:
        params["nu"] = nu
    return Contest(
        f"{name} ({steps} steps)",
        _rule(name, params),
        _twice,
        lambda b, x: b.GeometricMedian(nu=nu or SMALL_RADIUS, T=steps),
    )


_COORDINATE = (
    Contest(
        "mean",
        _rule("mean"),
        _once,
        lambda b, x: b.Average(),
        lambda w, x, r: w.aggregate([(layers, 1) for layers, _ in r]),
    ),
    Contest(
        "weighted-mean",
        _rule("weighted-mean", {"cap": CLAIM_CAP}),
        _once,
        flower=lambda w, x, r: w.aggregate(r),
        weighted=True,
    ),
    Contest(
        "clipped-weighted-mean", _rule("clipped-weighted-mean", {"cap": CLAIM_CAP}), _twice, weighted=True
    ),
    Contest("median", _rule("median"), _once, lambda b, x: b.Median(), lambda w, x, r: w.aggregate_median(r)),
    Contest("weighted-median", _rule("weighted-median", {"cap": CLAIM_CAP}), _once, weighted=True),
    Contest(
        "trimmed-mean",
        _rule("trimmed-mean"),
        _once,
        lambda b, x: b.TrMean(f=x.f),
        # Half a member more, because Flower takes int(n * share) of a rounded product.
        lambda w, x, r: w.aggregate_trimmed_avg(r, min((x.f + 0.5) / x.n, 0.499)),
    ),
    Contest(
        "weighted-trimmed-mean", _rule("weighted-trimmed-mean", {"cap": CLAIM_CAP}), _once, weighted=True
    ),
    Contest("meamed", _rule("meamed"), _once, lambda b, x: b.Meamed(f=x.f), copies=lambda n, f: 9),
    Contest("phocas", _rule("phocas"), _once),
)

_DISTANCES = (
    Contest(
        "krum",
        _rule("krum", {"excluded": 1}),
        _and_one,
        lambda b, x: b.Krum(f=x.f),
        lambda w, x, r: w.aggregate_krum(r, x.f, 0),
    ),
    Contest(
        "multi-krum",
        _rule("multi-krum", {"excluded": 1}),
        _and_chosen,
        lambda b, x: b.MultiKrum(f=x.f),
        lambda w, x, r: w.aggregate_krum([(layers, 1) for layers, _ in r], x.f, x.n - x.f),
    ),
    Contest(
        "bulyan",
        lambda x: rule_spec("bulyan", x.bulyan_f),
        lambda n, f: n + n - 2 * ((n - 3) // 4),
        flower=lambda w, x, r: w.aggregate_bulyan(list(r), x.bulyan_f, w.aggregate_krum, to_keep=0),
    ),
    _geometric("geometric-median", 3, None),
    _geometric("geometric-median", 20, None),
    _geometric("rfa", 3, 0.1),
    _geometric("rfa", 20, 0.1),
    Contest(
        "centered-clipping (3 steps)",
        lambda x: rule_spec("centered-clipping", x.f, {"tau": round(x.radius, 6), "steps": 3}),
        _twice,
        lambda b, x: b.CenteredClipping(L=3, tau=round(x.radius, 6)),
    ),
    Contest("monna", _rule("monna"), _and_chosen, lambda b, x: b.MoNNA(f=x.f, idx=0)),
    Contest("caf", _rule("caf"), _twice, lambda b, x: b.CAF(f=x.f), copies=lambda n, f: 8, random=True),
    Contest("mda", _rule("mda"), _and_chosen, lambda b, x: b.MDA(f=x.f), subsets=True),
    Contest("smea", _rule("smea"), _and_chosen, lambda b, x: b.SMEA(f=x.f), subsets=True, random=True),
    Contest("foolsgold", _rule("foolsgold"), _twice),
)

_COMPOSED = (
    Contest(
        "nnm + trimmed-mean",
        _rule("trimmed-mean", pre=["nnm"]),
        _twice,
        lambda b, x: _chain(b.NNM(f=x.f), b.TrMean(f=x.f)),
        copies=lambda n, f: n - f + 3,
    ),
    Contest(
        "arc + krum",
        _rule("krum", {"excluded": 1}, ["arc"]),
        _and_one,
        lambda b, x: _chain(b.ARC(f=x.f), b.Krum(f=x.f)),
        overwrites=True,
    ),
    Contest(
        "bucketing + median",
        _rule("median", pre=["bucketing:s=2"]),
        _once,
        lambda b, x: _chain(b.Bucketing(s=2), b.Median()),
        random=True,
    ),
)

CONTESTS: dict[str, Contest] = {c.label: c for c in (*_COORDINATE, *_DISTANCES, *_COMPOSED)}
"""Every contest by the label that tables show."""


def select(words: Sequence[str] | None) -> list[Contest]:
    """Contests whose label, without blanks and remarks, is one of `words`; all of them for None."""
    if words is None:
        return list(CONTESTS.values())
    short = {contest: contest.label.partition(" (")[0].replace(" ", "") for contest in CONTESTS.values()}
    wanted = {word.replace(" ", "") for word in words}
    if unknown := wanted - set(short.values()):
        known = ", ".join(dict.fromkeys(short.values()))
        raise SystemExit(f"no rule {', '.join(sorted(unknown))}; known: {known}")
    return [contest for contest, label in short.items() if label in wanted]
