"""Every rule, alone and after pre-aggregators, equals its slow reference on thousands of random cases.

Rules of exact arithmetic equal it exactly. Those with roots differ by at most 2^-8 steps of the lattice,
unless changes of 2^-16 steps of the input change the reference itself by more. `check(rule, pre, seed)`
replays a case.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference_rules as reference

from folkmoot.aggregation import (
    Lattice,
    Layout,
    RuleInvalid,
    RuleSpec,
    TensorSpec,
    aggregate,
    aggregate_updates,
    aggregate_values,
    minimum_updates,
    rule_spec,
)

TOLERANCE = 2.0**-8
"""In steps of the lattice. float32 rounds an average of int16 by up to 2^-10 steps, a mixed row by 2^-16."""
DISTURBANCE = 2.0**-16

ALONE, COMPOSED = 600, 120
"""Cases of a rule alone, and after each of the pre-aggregators."""

NEEDED = {
    **dict.fromkeys(("mean", "weighted-mean", "clipped-weighted-mean", "foolsgold"), (0, 1)),
    **dict.fromkeys(("median", "weighted-median", "trimmed-mean", "weighted-trimmed-mean"), (2, 1)),
    **dict.fromkeys(("meamed", "phocas", "geometric-median", "rfa", "centered-clipping"), (2, 1)),
    **dict.fromkeys(("mda", "smea", "monna", "caf"), (2, 1)),
    **dict.fromkeys(("krum", "multi-krum"), (2, 3)),
    "bulyan": (4, 3),
}
"""n >= a f + b."""

EXACT = {
    "mean", "weighted-mean", "median", "weighted-median", "trimmed-mean", "weighted-trimmed-mean",
    "meamed", "phocas", "krum", "multi-krum", "bulyan", "mda", "monna",
}  # fmt: skip
PER_MEMBER = {"weighted-mean", "clipped-weighted-mean", "weighted-median", "weighted-trimmed-mean", "monna"}
PRE = ((), ("nnm",), ("bucketing",), ("clipping",), ("arc",), ("arc", "nnm"), ("nnm", "arc"), ("nnm", "nnm"),
       ("bucketing", "nnm"), ("clipping", "bucketing"))  # fmt: skip
KINDS = ("normal", "small", "copies", "equal", "zeros", "extreme", "liars", "line", "one coordinate")


@dataclass(frozen=True)
class Case:
    """x = integers * units; `pre` as (name, parameters); `params` in the model's unit."""

    name: str
    f: int
    params: dict[str, Any]
    pre: tuple[tuple[str, dict[str, Any]], ...]
    integers: npt.NDArray[Any]
    lattice: Lattice
    layout: Layout
    claims: tuple[int, ...] | None
    history: npt.NDArray[Any] | None
    seed: bytes

    @property
    def units(self) -> npt.NDArray[np.float64]:
        sizes = [tensor.size for tensor in self.layout.tensors]
        return np.repeat([2.0**e for e in self.lattice.exponents], sizes)

    @property
    def spec(self) -> RuleSpec:
        pre = [f"{n}:" + ",".join(f"{k}={v}" for k, v in p.items()) if p else n for n, p in self.pre]
        return rule_spec(self.name, self.f, self.params, pre)

    @property
    def exact(self) -> bool:
        mixing = all(name in ("nnm", "bucketing") for name, _ in self.pre)
        return self.name in EXACT and mixing and self.params.get("power", 2) == 2

    def arguments(self) -> dict[str, Any]:
        return {"weights": self.claims, "seed": self.seed, "reference": self.history}

    def rows(self, x: Any, noise: np.random.Generator | None = None) -> Any:
        """What the rule sees: x after the pre-aggregators, by the reference, whose rows noise rescales."""
        for name, params in self.pre:
            more = {**params, "seed": self.seed} if name == "bucketing" else params
            x = getattr(reference, name)(x, self.f, **more)
            if noise is not None:
                x = x * (1 + noise.uniform(-1, 1, (len(x), 1)) * DISTURBANCE / self.lattice.largest)
        return x

    def expected(self, rows: Any) -> Any:
        """The reference's result for what the rule sees."""
        rule = getattr(reference, self.name.replace("-", "_"))
        more = {name: value for name, value in self.params.items() if name != "history"}
        if "cap" in more:
            more["w"] = self.claims
        if self.history is not None:
            more["reference"] = self.history * self.units
        return rule(rows, self.f, **more)


def draw_integers(rng: np.random.Generator, kind: str, shape: tuple[int, int], f: int, m: int) -> Any:
    n, d = shape
    if kind == "small":
        return rng.integers(-2, 3, shape)
    if kind == "copies":
        return rng.integers(-9, 10, (3, d))[rng.integers(0, 3, n)]
    if kind == "equal":
        return np.repeat(rng.integers(-m, m + 1, (1, d)), n, axis=0)
    if kind == "zeros":
        return rng.integers(-m, m + 1, shape) * rng.integers(0, 2, (n, 1))
    if kind == "extreme":
        return rng.choice([-m, 0, m], shape)
    if kind == "line":
        return rng.integers(-m // 3, m // 3 + 1, (n, 1)) * rng.integers(-3, 4, (1, d))
    spread = m // 8
    values = rng.normal(0, spread, shape) + rng.normal(0, spread, (1, d))
    if kind == "liars" and f:
        values[rng.permutation(n)[:f]] = rng.normal(0, spread, (1, d)) * 5
    return np.clip(np.rint(values), -m, m)


def draw_layout(rng: np.random.Generator, d: int) -> tuple[Layout, tuple[int, ...]]:
    cuts = sorted({0, d, *rng.integers(0, d + 1, rng.integers(0, 3)).tolist()})
    tensors = tuple(TensorSpec(f"t{a}", (b - a,)) for a, b in itertools.pairwise(cuts))
    base = int(rng.integers(-12, 4))
    return Layout(tensors), tuple(base + int(rng.integers(-3, 4)) for _ in tensors)


def draw_length(rng: np.random.Generator, x: npt.NDArray[np.float64]) -> float:
    lengths = [0.0, *np.linalg.norm(x, axis=1)]
    return round(float(rng.choice(lengths) * rng.choice([0.25, 0.9, 1.0, 1.5])), 6)


def draw_params(rng: np.random.Generator, name: str, n: int, f: int, x: Any) -> dict[str, Any]:
    if name == "clipped-weighted-mean":
        return {"tau": draw_length(rng, x)} if rng.integers(2) else {}
    if name == "krum":
        return {"excluded": int(rng.integers(1, 3)), "power": int(rng.choice([1, 2, 2, 2]))}
    if name == "multi-krum":
        return {"excluded": int(rng.integers(1, 3)), "m": int(rng.integers(1, n - f + 1))}
    if name in ("geometric-median", "rfa"):
        nu = {"nu": float(rng.choice([1e-6, 0.1, 1.0, 100.0]))} if name == "rfa" else {}
        return {"steps": int(rng.integers(1, 12)), **nu}
    if name == "centered-clipping":
        return {"steps": int(rng.integers(1, 5)), "tau": draw_length(rng, x)}
    return {}


def draw_claims(rng: np.random.Generator, name: str, n: int, f: int) -> tuple[tuple[int, ...], int]:
    """Claims and cap; some claim nothing, some a thousand times the others."""
    while True:
        cap = int(rng.choice([1, 3, 7, 1000]))
        claims = rng.choice([0, 1, 2, 5, 400, 10**6], n, p=[0.1, 0.3, 0.2, 0.2, 0.1, 0.1])
        if name == "multi-krum":
            claims = claims + 1
        capped = sorted(min(int(claim), cap) for claim in claims)
        trimmed = 2 * sum(capped[n - f :]) if name == "weighted-trimmed-mean" else 0
        if sum(capped) > trimmed:
            return tuple(int(claim) for claim in claims), cap


def draw(name: str, pre: tuple[str, ...], seed: int) -> Case:
    rng = np.random.default_rng([seed, zlib.crc32(f"{name} {pre}".encode())])
    f = int(rng.integers(0, 2 if "bucketing" in pre or name == "bulyan" else 4))
    slope, offset = NEEDED[name]
    least, s = max(slope * f + offset, f + 1 if pre else 1), int(rng.integers(1, 3))
    if "bucketing" in pre:
        least = max(s * (least - 1) + 1, f + 1)
    n = least + int(rng.integers(0, 6))
    kind = KINDS[seed % len(KINDS)]
    d = 1 if kind == "one coordinate" else int(rng.choice([1, 2, 3, 5, 8, 20, 40]))
    bits = int(rng.choice([8, 16, 16]))
    layout, exponents = draw_layout(rng, d)
    lattice = Lattice(bits, exponents)
    integers = draw_integers(rng, kind, (n, d), f, lattice.largest).astype(lattice.dtype)
    blank = Case(name, f, {}, (), integers, lattice, layout, None, None, b"")
    x = integers * blank.units
    rows = -(-n // s) if "bucketing" in pre else n
    params, claims, history = draw_params(rng, name, rows, f, x), None, None
    capped = PER_MEMBER - {"monna"} | ({"rfa", "multi-krum"} if "bucketing" not in pre else set())
    if name in capped and (name in PER_MEMBER or rng.integers(2)):
        claims, params["cap"] = draw_claims(rng, name, n, f)
    if name == "monna":
        params["pivot"] = int(rng.integers(0, n))
    if name == "centered-clipping" and rng.integers(2):
        params["history"] = 1
        history = rng.integers(-lattice.largest, lattice.largest + 1, d).astype(lattice.dtype)
    steps = tuple(
        (p, {"bucketing": {"s": s}, "clipping": {"tau": draw_length(rng, x)}}.get(p, {})) for p in pre
    )
    return Case(name, f, params, steps, integers, lattice, layout, claims, history, b"%d" % seed)


def steps_apart(case: Case, got: Any, expected: Any) -> float:
    return float(np.max(np.abs(reference.floats(got) - reference.floats(expected)) / case.units))


def ours(case: Case, seed: int) -> npt.NDArray[np.float32]:
    return aggregate_values(
        list(case.integers), case.layout, case.lattice, case.spec,
        backend=("numpy", "auto")[seed % 2], **case.arguments(),
    )  # fmt: skip


def tolerance(case: Case, x: Any) -> float:
    if case.name == "caf":
        # Directions come from matrices of 22 bits.
        return 16 * case.lattice.largest * 2.0**-22
    if case.name != "foolsgold":
        return TOLERANCE
    # Weights are divided by the largest, so an error of 2^-32 in a cosine grows by its inverse.
    largest = max(reference.foolsgold_distinctness(case.rows(x)), default=1.0)
    return TOLERANCE + (len(x) * 2.0**-14 / largest if largest > 0 else 0.0)


def is_on_edge(case: Case, x: npt.NDArray[np.float64], expected: Any, allowed: float) -> bool:
    """Whether changes of 2^-16 steps in the input change the reference's result by more than allowed."""
    return any(steps_apart(case, case.expected(rows), expected) > allowed / 2 for rows in disturbed(case, x))


def disturbed(case: Case, x: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.float64]]:
    """What the rule sees after tiny changes of the input, or of what each pre-aggregator gives."""
    rng = np.random.default_rng(0)
    for attempt in range(48):
        other = x + rng.uniform(-1, 1, x.shape) * case.units * DISTURBANCE
        yield case.rows(other) if attempt % 2 else case.rows(x, rng)


def check(name: str, pre: tuple[str, ...], seed: int) -> bool:
    """Compare one case; False when it lies on an edge, where no result is the right one."""
    case = draw(name, pre, seed)
    x = case.integers * case.units
    assert minimum_updates(case.spec) <= len(x)
    replay = f"check({name!r}, {pre!r}, {seed}): {case}"
    got = ours(case, seed)
    known = reference.exact(x) if all(p in ("nnm", "bucketing") for p in pre) else x
    if name == "smea":
        if is_a_smea(case, got, case.rows(x)):
            return True
        assert any(is_a_smea(case, got, rows) for rows in disturbed(case, x)), replay
        return False
    expected = case.expected(case.rows(known))
    if case.exact:
        whole = aggregate_updates(
            list(case.integers), case.layout, case.lattice, case.spec, **case.arguments()
        )
        values = [
            Fraction(int(top), whole.denominator) * Fraction(unit)
            for top, unit in zip(whole.numerators, case.units, strict=True)
        ]
        assert values == list(expected), replay
    allowed = tolerance(case, known)
    if steps_apart(case, got, expected) <= allowed:
        return True
    assert not case.exact, f"{replay}\nfloat32 is {got}, expected {expected}"
    assert is_on_edge(case, x, expected, allowed), f"{replay}\ngot {got}, expected {expected}"
    return False


def is_a_smea(case: Case, got: Any, rows: Any) -> bool:
    """Whether it is the mean of a subset that varies at most 1 % more than the one that varies least."""
    rows = reference.floats(rows)
    subsets = list(itertools.combinations(range(len(rows)), len(rows) - case.f))
    spreads = [reference.spread(rows, subset) for subset in subsets]
    same = [
        value
        for value, subset in zip(spreads, subsets, strict=True)
        if steps_apart(case, got, rows[list(subset)].mean(axis=0)) <= TOLERANCE
    ]
    floor = (
        min(spreads) + 1e-9 * reference.spread(rows, range(len(rows))) + (case.units.max() * DISTURBANCE) ** 2
    )
    return bool(same) and min(same) <= 1.01 * floor


def pairs() -> list[Any]:
    return [
        pytest.param(name, pre, id="+".join((*pre, name)))
        for name in NEEDED
        for pre in PRE
        if not ("bucketing" in pre and name in PER_MEMBER)
    ]


@pytest.mark.parametrize(("name", "pre"), pairs())
def test_a_rule_equals_its_reference(name: str, pre: tuple[str, ...]) -> None:
    cases = COMPOSED if pre else ALONE
    compared = sum(check(name, pre, seed) for seed in range(cases))
    assert compared >= 0.6 * cases


@pytest.mark.parametrize("size", [0, 1, 300])
def test_liars_near_zero_do_not_hold_the_geometric_median_at_its_start(size: int) -> None:
    honest = np.random.default_rng(1).integers(100, 1900, (8, 8)).astype(np.float32)
    lies = np.full((2, 8), -size, np.float32)
    found = aggregate([*honest, *lies], "geometric-median", f=2)
    without = aggregate(list(honest), "geometric-median")
    assert np.linalg.norm(found - without) < 0.5 * np.linalg.norm(without)


@pytest.mark.parametrize("tau", ["1e999999999", "1e-999999999", "nan", "1e", "1/0", "ee"])
def test_a_number_that_is_none_or_has_too_many_digits_is_refused_at_once(tau: str) -> None:
    with pytest.raises(RuleInvalid, match="tau"):
        rule_spec("centered-clipping", 1, {"tau": tau})
