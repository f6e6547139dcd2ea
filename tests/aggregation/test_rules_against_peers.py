"""Where ByzFL and Flower define a rule as we do, or with a parameter of ours, the results are theirs.

Inputs are lattice integers times a power of two, so that only the peers round. ByzFL's SMEA takes one power
step from a random vector, which is exact for one coordinate only; its buckets are drawn at random, so they
are compared where the draw does not matter. Its CAF is left out: it scales by the largest t of all updates,
those of weight 0 among them. `draw(pair, name, seed)` replays a case.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from folkmoot.aggregation import Lattice, Layout, TensorSpec, aggregate_values, rule_spec

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"
CASES = 120
EXPONENT = -10


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peers = load(PEERS)


@dataclass(frozen=True)
class Draw:
    """n updates of d values with f liars; `length` near the median norm; claims for weighted rules."""

    rng: np.random.Generator
    integers: npt.NDArray[np.int16]
    f: int
    steps: int
    pivot: int
    length: float
    claims: tuple[int, ...]

    @property
    def x(self) -> npt.NDArray[np.float64]:
        return self.integers * 2.0**EXPONENT

    def ours(
        self, rule: str, params: dict[str, Any] | None = None, pre: Sequence[str] = (), **more: Any
    ) -> Any:
        layout = Layout((TensorSpec("t", (self.integers.shape[1],)),))
        spec = rule_spec(rule, self.f, params or {}, pre)
        return aggregate_values(list(self.integers), layout, Lattice(16, (EXPONENT,)), spec, **more)

    def lists(self) -> list[tuple[list[npt.NDArray[np.float64]], int]]:
        """What Flower takes: for each client its layers and its number of examples."""
        return [([row], claim) for row, claim in zip(self.x, self.claims, strict=True)]


Rule = Callable[[Draw], Any]
Peer = Callable[[Any, Draw], Callable[[Any], Any]]


@dataclass(frozen=True)
class Pair:
    """Our rule and the peer's, for n >= slope f + offset.

    `single`: only for one coordinate, f > 0. `clear`: which coordinates have one answer.
    """

    ours: Rule
    theirs: Peer
    slope: int = 2
    offset: int = 1
    single: bool = False
    clear: Callable[[Draw], Any] = lambda c: np.ones(c.integers.shape[1], bool)


def without_ties_around_the_median(case: Draw) -> Any:
    """Coordinates whose n - f values nearest to the median are not a matter of choice."""
    integers = case.integers.astype(np.int64)
    apart = np.sort(np.abs(integers - np.median(integers, axis=0)), axis=0)
    kept = len(integers) - case.f
    return np.ones(len(apart[0]), bool) if case.f == 0 else apart[kept - 1] < apart[kept]


def chain(*calls: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def composed(vectors: Any) -> Any:
        for call in calls:
            vectors = call(vectors)
        return vectors

    return composed


BYZFL = {
    "mean": Pair(lambda c: c.ours("mean"), lambda b, c: b.Average()),
    "median": Pair(lambda c: c.ours("median"), lambda b, c: b.Median()),
    "trimmed-mean": Pair(lambda c: c.ours("trimmed-mean"), lambda b, c: b.TrMean(f=c.f)),
    "meamed": Pair(
        lambda c: c.ours("meamed"), lambda b, c: b.Meamed(f=c.f), clear=without_ties_around_the_median
    ),
    "rfa": Pair(
        lambda c: c.ours("rfa", {"nu": 0.1, "steps": c.steps}),
        lambda b, c: b.GeometricMedian(nu=0.1, T=c.steps),
    ),
    "krum with one excluded": Pair(
        lambda c: c.ours("krum", {"excluded": 1}), lambda b, c: b.Krum(f=c.f), offset=3
    ),
    "multi-krum with one excluded": Pair(
        lambda c: c.ours("multi-krum", {"excluded": 1}), lambda b, c: b.MultiKrum(f=c.f), offset=3
    ),
    "centered-clipping": Pair(
        lambda c: c.ours("centered-clipping", {"tau": c.length, "steps": c.steps}),
        lambda b, c: b.CenteredClipping(L=c.steps, tau=c.length),
    ),
    "mda": Pair(lambda c: c.ours("mda"), lambda b, c: b.MDA(f=c.f)),
    "monna": Pair(lambda c: c.ours("monna", {"pivot": c.pivot}), lambda b, c: b.MoNNA(f=c.f, idx=c.pivot)),
    "smea": Pair(lambda c: c.ours("smea"), lambda b, c: b.SMEA(f=c.f), single=True, offset=2),
    "nnm, mean": Pair(lambda c: c.ours("mean", pre=["nnm"]), lambda b, c: chain(b.NNM(f=c.f), b.Average())),
    "nnm, trimmed-mean": Pair(
        lambda c: c.ours("trimmed-mean", pre=["nnm"]), lambda b, c: chain(b.NNM(f=c.f), b.TrMean(f=c.f))
    ),
    "clipping, mean": Pair(
        lambda c: c.ours("mean", pre=[f"clipping:tau={c.length}"]),
        lambda b, c: chain(b.Clipping(c=c.length), b.Average()),
    ),
    "arc, mean": Pair(lambda c: c.ours("mean", pre=["arc"]), lambda b, c: chain(b.ARC(f=c.f), b.Average())),
    "arc, nnm, median": Pair(
        lambda c: c.ours("median", pre=["arc", "nnm"]),
        lambda b, c: chain(b.ARC(f=c.f), b.NNM(f=c.f), b.Median()),
    ),
    "buckets of one, trimmed-mean": Pair(
        lambda c: c.ours("trimmed-mean", pre=["bucketing:s=1"]),
        lambda b, c: chain(b.Bucketing(s=1), b.TrMean(f=c.f)),
    ),
}

FLOWER = {
    "weighted-mean": Pair(
        lambda c: c.ours("weighted-mean", {"cap": 1000}, weights=c.claims), lambda w, c: w.aggregate
    ),
    "median": Pair(lambda c: c.ours("median"), lambda w, c: w.aggregate_median),
    "trimmed-mean": Pair(
        lambda c: c.ours("trimmed-mean"),
        # Half a member more, because Flower takes int(n * share) of a rounded product.
        lambda w, c: lambda r: w.aggregate_trimmed_avg(r, min((c.f + 0.5) / len(r), 0.499)),
    ),
    "krum": Pair(lambda c: c.ours("krum"), lambda w, c: lambda r: w.aggregate_krum(r, c.f, 0), offset=3),
    "multi-krum": Pair(
        lambda c: c.ours("multi-krum"),
        lambda w, c: lambda r: w.aggregate_krum([(layers, 1) for layers, _ in r], c.f, len(r) - c.f),
        offset=3,
    ),
}


def draw(pair: Pair, name: str, seed: int) -> Draw:
    rng = np.random.default_rng([seed, *name.encode()])
    f = max(seed % 4, int(pair.single))
    n = pair.slope * f + pair.offset + int(rng.integers(0, 5))
    d = 1 if pair.single else int(rng.choice([1, 2, 5, 30, 200]))
    values = rng.normal(0, 900, (n, d)) + rng.normal(0, 900, d)
    if seed % 2:
        values[rng.permutation(n)[:f]] -= rng.normal(6000, 900, d)
    integers = np.clip(np.rint(values), -32767, 32767).astype(np.int16)
    norms = np.linalg.norm(integers * 2.0**EXPONENT, axis=1)
    length = max(round(float(np.median(norms)), 6), 1e-6)
    claims = tuple(int(claim) for claim in rng.integers(1, 1001, n))
    return Draw(rng, integers, f, int(rng.integers(1, 8)), int(rng.integers(0, n)), length, claims)


def require_same(pair: Pair, case: Draw, expected: Any, replay: str) -> int:
    """Fails unless all clear coordinates are the same to a hundredth of a step; how many there are."""
    clear = pair.clear(case)
    apart = np.abs(np.asarray(pair.ours(case), np.float64) - np.asarray(expected, np.float64))[clear]
    assert (apart <= 0.01 * 2.0**EXPONENT).all(), f"{replay}: {apart * 2.0**-EXPONENT} steps apart\n{case}"
    return int(clear.sum())


@pytest.mark.parametrize("flavour", ["NumPy", "PyTorch"])
@pytest.mark.parametrize("name", BYZFL)
def test_a_rule_is_that_of_byzfl(name: str, flavour: str) -> None:
    pair, compared, values = BYZFL[name], 0, 0
    for seed in range(CASES):
        # ByzFL draws from both.
        np.random.seed(seed)
        torch.manual_seed(seed)
        case = draw(pair, name, seed)
        vectors = torch.tensor(case.x) if flavour == "PyTorch" else case.x.copy()
        if pair.single and flavour == "PyTorch":
            # Its random vector is float32.
            vectors = vectors.float()
        expected = pair.theirs(peers.byzfl(), case)(vectors)
        compared += require_same(pair, case, expected, f"draw(BYZFL[{name!r}], {name!r}, {seed})")
        values += case.integers.shape[1]
    assert compared >= 0.9 * values


@pytest.mark.parametrize("name", FLOWER)
def test_a_rule_is_that_of_flower(name: str) -> None:
    pair = FLOWER[name]
    for seed in range(CASES):
        case = draw(pair, name, seed)
        expected = pair.theirs(peers.flower(), case)(case.lists())[0]
        require_same(pair, case, expected, f"draw(FLOWER[{name!r}], {name!r}, {seed})")


ON_A_LINE = np.int16([[0], [2], [4], [5], [6], [9], [10]])
"""With f = 1 Blanchard et al. count the 4 nearest others, ByzFL 5, P2PFL and NEBULA all 6."""


def chosen(params: dict[str, Any], f: int) -> float:
    layout = Layout((TensorSpec("t", (1,)),))
    spec = rule_spec("krum", f, params)
    return float(aggregate_values(list(ON_A_LINE), layout, Lattice(16, (0,)), spec)[0])


def test_three_definitions_of_krum_choose_three_updates() -> None:
    # 4: 1 + 4 + 4 + 16 = 25; 5: 1 + 1 + 9 + 16 = 27; 6: 1 + 4 + 9 + 16 = 30; the others more.
    assert chosen({}, 1) == 4
    # 6: 30 + 16 = 46; 4: 25 + 25 = 50; 5: 27 + 25 = 52.
    assert chosen({"excluded": 1}, 1) == 6
    assert peers.byzfl().Krum(f=1)(ON_A_LINE.astype(np.float64))[0] == 6
    assert peers.flower().aggregate_krum([([row], 1) for row in ON_A_LINE.astype(float)], 1, 0)[0][0] == 4
    # Distances as they are, to all others: 5 + 3 + 1 + 1 + 4 + 5 = 19 for 5; 20 for 4 and for 6.
    assert chosen({"excluded": 1, "power": 1}, 0) == 5
