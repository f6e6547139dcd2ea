"""Each rule gives what ByzFL 0.0.11 and Flower 1.42.0 give, wherever the definitions agree.

Inputs are integers times powers of two, so only the peers round: ByzFL with tensors to float32, all else to
float64. Where a decision is nearly tied that rounding may decide; such cases are left out, at most 40 %.

ByzFL's SMEA and CAF take one power step from a random vector, so their eigenvalues are exact for a single
coordinate alone. Otherwise they are compared on far liars, whose subsets have eigenvalues a million times
larger. ByzFL's CAF also divides by the largest deviation of all updates, those with weight 0 included. So its
liars send copies, which lose all weight at once and no longer stand out in the direction that is left.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference_rules as reference
import torch

from folkmoot.aggregation import RULES, Lattice, Layout, TensorSpec, aggregate_values, rule_spec
from folkmoot.aggregation.preaggregators import bucketing

CASES = 400
MARGIN = 2.0**-14
"""Decisions closer than this, in proportion, are left to rounding: float32 errs by up to d 2^-24."""
DOUBLE, SINGLE = 2.0**-22, 2.0**-18
"""What results may differ by, in parts of the largest value: the peers' rounding, and ours to float32."""
KINDS = ("normal", "far liars", "small", "one coordinate")
HUDDLED = ("far liars, the others close together",)

Floats = npt.NDArray[np.float64]

_FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"
_SPEC = importlib.util.spec_from_file_location(_FILE.stem, _FILE)
peers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(peers)
byzfl, flower = peers.byzfl(), peers.flower()


@dataclass(frozen=True)
class Case:
    """n updates x = integers * units of d values, f of them perhaps lies, and what parameters may be."""

    seed: int
    f: int
    integers: npt.NDArray[Any]
    units: Floats
    layout: Layout
    lattice: Lattice
    steps: int
    pivot: int
    claims: tuple[int, ...]
    length: float

    @property
    def n(self) -> int:
        return len(self.integers)

    @property
    def x(self) -> Floats:
        return self.integers * self.units

    @property
    def exact(self) -> npt.NDArray[np.int64]:
        """The updates as integers of one unit, so that distances are exact."""
        return self.integers.astype(np.int64) * np.rint(self.units / self.units.min()).astype(np.int64)


def draw(seed: int, needs: tuple[int, int], kinds: Sequence[str], fs: Sequence[int]) -> Case:
    """n is the least that is allowed, needs[0] f + needs[1], in a third of the cases; else up to 5 more."""
    rng = np.random.default_rng(seed)
    kind, f, bits = kinds[seed % len(kinds)], int(rng.choice(fs)), int(rng.choice([8, 16, 16]))
    n = needs[0] * f + needs[1] + (0 if rng.integers(3) == 0 else int(rng.integers(1, 6)))
    d = 1 if kind == "one coordinate" else int(rng.choice([2, 3, 8, 30, 100]))
    largest = 2 ** (bits - 1) - 1
    values = rng.normal(0, largest / 16, (n, d)) + rng.normal(0, largest / 16, d)
    if kind == "small":
        values = rng.integers(-2, 3, (n, d)).astype(float)
    if kind in HUDDLED:
        bits, largest, values = 16, 32767, rng.normal(0, 20, (n, d))
    if kind in ("far liars", *HUDDLED):
        liars = rng.permutation(n)[:f]
        values[liars] += rng.choice([-1, 1], d) * rng.uniform(0.7, 1, (len(liars), d)) * largest
    return complete(seed, rng, f, bits, np.clip(np.rint(values), -largest, largest))


def complete(seed: int, rng: np.random.Generator, f: int, bits: int, values: Floats, span: int = 4) -> Case:
    """The case of these integers, in one tensor or two of up to `span` exponents, with all else drawn."""
    n, d = values.shape
    cuts = sorted({0, d, int(rng.integers(0, d + 1))})
    layout = Layout(tuple(TensorSpec(f"t{a}", (b - a,)) for a, b in itertools.pairwise(cuts)))
    exponents = rng.integers(-12, 0) + rng.integers(0, span, len(layout.tensors))
    lattice = Lattice(bits, tuple(int(exponent) for exponent in exponents))
    units = np.repeat(2.0**exponents, np.diff(cuts))
    steps, pivot = int(rng.integers(1, 8)), int(rng.integers(0, n))
    claims = tuple(int(claim) for claim in rng.integers(1, 1001, n))
    norm = float(np.median(np.linalg.norm(values * units, axis=1)) * rng.choice([0.5, 1.0, 2.0]))
    length, integers = max(round(norm, 6), 0.000001), values.astype(lattice.dtype)
    return Case(seed, f, integers, units, layout, lattice, steps, pivot, claims, length)


def draw_copies(seed: int, *_: Any) -> Case:
    """f far copies in one direction; the others in even number on both sides of their middle in another."""
    rng = np.random.default_rng(seed)
    f = int(rng.integers(1, 4))
    honest, d = 2 * int(rng.integers(f // 2 + 1, f + 3)), int(rng.choice([2, 3, 8, 30]))
    far, signs = np.arange(d) % 2 == 0, rng.choice([-1, 1], d)
    sides = np.resize([1.0, -1.0], honest) * np.rint(rng.uniform(45, 55, honest))
    copies = np.tile(signs * far * rng.integers(28000, 32768, d), (f, 1))
    values = np.concatenate([sides[:, None] * signs * ~far, copies])
    return complete(seed, rng, f, 16, values[rng.permutation(len(values))], span=1)


# Results of the peers, each with its name and rounding, and ours

Theirs = Callable[[Case], Iterable[tuple[str, float, Any]]]


def settled(params: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """Parameters may be functions of the case."""
    return {name: value(case) if callable(value) else value for name, value in params.items()}


def with_byzfl(*names: str, **params: Any) -> Theirs:
    """ByzFL's classes one after the other, with f and those parameters that each takes, in both flavours."""

    def call(name: str, case: Case, vectors: Any) -> Any:
        kind, given = getattr(byzfl, name), {"f": case.f, **settled(params, case)}
        rule = kind(**{key: given[key] for key in inspect.signature(kind).parameters if key in given})
        if "start" in given:
            rule.m = vectors[given["start"]]
        # Its quotients by a norm of 0 are infinite, and then cut to 1.
        with np.errstate(divide="ignore"):
            return rule(vectors)

    def found(case: Case) -> Iterator[tuple[str, float, Any]]:
        # ByzFL draws from both, overwrites its input and turns tensors to float32.
        np.random.seed(case.seed)
        torch.manual_seed(case.seed)
        arrays, tensors = case.x, torch.tensor(case.x).float()
        for name in names:
            arrays, tensors = call(name, case, arrays), call(name, case, tensors)
        yield from (("ByzFL with arrays", DOUBLE, arrays), ("ByzFL with tensors", SINGLE, tensors.numpy()))

    return found


def with_flower(call: Callable[[Case, list[Any]], list[Any]]) -> Theirs:
    """Flower takes for each client its layers and its number of examples, and gives layers."""

    def found(case: Case) -> Iterator[tuple[str, float, Any]]:
        cuts = np.cumsum([tensor.size for tensor in case.layout.tensors])[:-1]
        results = [(np.split(row, cuts), claim) for row, claim in zip(case.x, case.claims, strict=True)]
        yield "Flower", DOUBLE, np.concatenate(call(case, results))

    return found


def ours(case: Case, rule: str, pre: Sequence[str], params: Mapping[str, Any]) -> Floats:
    spec = rule_spec(rule, case.f, settled(params, case), [text.format(c=case) for text in pre])
    return aggregate_values(
        list(case.integers), case.layout, case.lattice, spec, weights=case.claims,
        reference=case.integers[case.pivot], backend=("numpy", "auto")[case.seed % 2],
    ).astype(np.float64)  # fmt: skip


def require_same(
    rule: str, theirs: Theirs, clear: Callable[[Case], Any] = lambda case: True, *,
    pre: Sequence[str] = (), needs: tuple[int, int] | None = None, fs: Sequence[int] = range(4),
    kinds: Sequence[str] = KINDS, make: Callable[..., Case] = draw, seeds: Sequence[int] = range(CASES),
    **params: Any,
) -> None:  # fmt: skip
    """Both give the same in the clear coordinates, which are 60 % or more. {c} in `pre` is the case."""
    compared = 0.0
    for seed in seeds:
        try:
            case = make(seed, needs or (RULES[rule].slope, RULES[rule].offset), kinds, fs)
            known = np.broadcast_to(clear(case), case.units.shape)
            compared += known.mean()
            # A mixed row is rounded by up to 2^-16 steps.
            largest, least = np.abs(case.x).max(), 2.0**-14 * case.units
            for peer, rounding, expected in theirs(case) if known.any() else ():
                apart = np.abs(ours(case, rule, pre, params) - expected) / (rounding * largest + least)
                assert (apart[known] <= 1).all(), f"{peer}: {apart[known]} times what may be, {case}"
        except Exception as error:
            error.add_note(f"{rule} after {list(pre)}: seeds=[{seed}] in this require_same replays it")
            raise
    assert compared >= 0.6 * len(seeds), f"only {compared} of {len(seeds)} cases were clear"


def distances(rows: Any) -> Any:
    return ((rows[:, None] - rows[None]) ** 2).sum(axis=2)


def parted(values: Iterable[Any], kept: int) -> bool:
    """Whether the `kept` smallest are clearly smaller than the others."""
    ordered = sorted(values)
    return kept == len(ordered) or bool(ordered[kept] - ordered[kept - 1] > MARGIN * ordered[kept])


def krum_scores(rows: Any, near: int) -> list[Any]:
    return [sum(sorted(row)[1 : near + 1]) for row in distances(rows)]


def clear_krum(rows: Any, near: int, kept: int = 1) -> bool:
    """With one neighbour a closest pair scores the same, and the lower index wins, here and in Flower."""
    return near == 1 or parted(krum_scores(rows, near), kept)


def clear_nnm(rows: Any, f: int) -> bool:
    return all(parted(row, len(rows) - f) for row in distances(rows))


def clear_nearest(values: Any, kept: int) -> Any:
    """Coordinates in which every choice of the `kept` values nearest to the median has the same sum."""
    apart = np.abs(2 * values - np.rint(2 * np.median(values, axis=0)).astype(np.int64))
    orders = [np.lexsort((side, apart), 0)[:kept] for side in (values, -values)]
    low, high = (np.take_along_axis(values, order, axis=0).sum(axis=0) for order in orders)
    return low == high


def clear_bulyan(case: Case) -> Any:
    rows, rest, chosen = case.exact, list(range(case.n)), list[int]()
    while len(chosen) < case.n - 2 * case.f:
        near = max(1, len(rest) - case.f - 2)
        if not clear_krum(rows[rest], near):
            return False
        chosen.append(rest.pop(int(np.argmin(krum_scores(rows[rest], near)))))
    return clear_nearest(rows[chosen], case.n - 4 * case.f)


def clear_mda(case: Case) -> bool:
    """Subsets with the same farthest pair are equally wide for all, and the first of them wins with all."""
    table, widths = distances(case.exact), []
    for subset in itertools.combinations(range(case.n), case.n - case.f):
        within = table[np.ix_(subset, subset)]
        first, second = divmod(int(np.argmax(within)), len(subset))
        widths.append((int(within[first, second]), subset[first], subset[second]))
    least = min(widths)
    return all(found == least or found[0] > (1 + MARGIN) * least[0] for found in widths)


def clear_smea(case: Case) -> bool:
    """ByzFL overlooks a subset of equal updates: its eigenvalue is 0 / 0."""
    subsets = itertools.combinations(range(case.n), case.n - case.f)
    spreads = [reference.spread(case.x, subset) for subset in subsets]
    return min(spreads) > 0 and parted(spreads, 1)


def test_mean_and_weighted_mean_are_byzfls_average_and_flowers_aggregate() -> None:
    require_same("mean", with_byzfl("Average"))
    require_same("mean", with_flower(lambda c, r: flower.aggregate([(layers, 3) for layers, _ in r])))
    require_same("weighted-mean", with_flower(lambda c, r: flower.aggregate(r)), cap=1000)


def test_median_is_byzfls_and_flowers() -> None:
    require_same("median", with_byzfl("Median"))
    require_same("median", with_flower(lambda c, r: flower.aggregate_median(r)))


def test_median_of_an_even_number_is_the_mean_of_the_middle_two_here_and_in_both_flavours_of_byzfl() -> None:
    column = np.array([[1.0], [2.0], [4.0], [9.0]])
    assert on_a_line([1, 2, 4, 9], "median", 0) == 3
    assert byzfl.Median()(column) == byzfl.Median()(torch.tensor(column)) == 3
    # PyTorch's own median, which ByzFL does not call, is the lower one.
    assert torch.median(torch.tensor(column)) == 2


def test_trimmed_mean_is_byzfls_and_flowers() -> None:
    require_same("trimmed-mean", with_byzfl("TrMean"))
    # Flower cuts the floor of n times a share; half an update more keeps that off whole numbers.
    theirs = with_flower(lambda c, r: flower.aggregate_trimmed_avg(r, min((c.f + 0.5) / c.n, 0.499)))
    require_same("trimmed-mean", theirs)


def test_meamed_is_byzfls_where_no_two_values_are_equally_far_from_the_median() -> None:
    require_same("meamed", with_byzfl("Meamed"), lambda c: clear_nearest(c.integers.astype(int), c.n - c.f))


def test_krum_with_one_excluded_is_byzfls_krum() -> None:
    require_same("krum", with_byzfl("Krum"), lambda c: clear_krum(c.exact, c.n - c.f - 1), excluded=1)


def test_multi_krum_with_one_excluded_is_byzfls_multi_krum() -> None:
    theirs = with_byzfl("MultiKrum")
    require_same("multi-krum", theirs, lambda c: clear_krum(c.exact, c.n - c.f - 1, c.n - c.f), excluded=1)


def test_krum_and_multi_krum_are_flowers() -> None:
    theirs = with_flower(lambda c, r: flower.aggregate_krum(r, c.f, 0))
    require_same("krum", theirs, lambda c: clear_krum(c.exact, c.n - c.f - 2))
    theirs = with_flower(lambda c, r: flower.aggregate_krum(r, c.f, c.n - c.f))
    require_same("multi-krum", theirs, lambda c: clear_krum(c.exact, c.n - c.f - 2, c.n - c.f), cap=1000)


def test_bulyan_is_flowers() -> None:
    theirs = with_flower(lambda c, r: flower.aggregate_bulyan(r, c.f, flower.aggregate_krum, to_keep=0))
    require_same("bulyan", theirs, clear_bulyan)


def test_mda_is_byzfls() -> None:
    require_same("mda", with_byzfl("MDA"), clear_mda)


def test_monna_is_byzfls_with_the_first_the_last_and_any_pivot() -> None:
    for at in (lambda c: 0, lambda c: c.n - 1, lambda c: c.pivot):
        theirs = with_byzfl("MoNNA", idx=at)
        require_same("monna", theirs, lambda c, at=at: parted(distances(c.exact)[at(c)], c.n - c.f), pivot=at)


@pytest.mark.parametrize("nu", [0.001, 0.1, lambda c: c.length], ids=["0.001", "0.1", "length"])
def test_rfa_is_byzfls_geometric_median(nu: Any) -> None:
    theirs = with_byzfl("GeometricMedian", nu=nu, T=lambda c: c.steps)
    require_same("rfa", theirs, nu=nu, steps=lambda c: c.steps)


def test_centered_clipping_is_byzfls_from_zero_and_from_a_vector_that_its_constructor_would_refuse() -> None:
    tau, steps = (lambda c: c.length), (lambda c: c.steps)
    require_same("centered-clipping", with_byzfl("CenteredClipping", L=steps, tau=tau), tau=tau, steps=steps)
    theirs = with_byzfl("CenteredClipping", L=steps, tau=tau, start=lambda c: c.pivot)
    require_same("centered-clipping", theirs, tau=tau, steps=steps, history=1)


def test_smea_is_byzfls_for_a_single_coordinate_and_among_far_liars() -> None:
    for kinds in (("one coordinate",), HUDDLED):
        require_same("smea", with_byzfl("SMEA"), clear_smea, kinds=kinds, fs=(1, 2))


def test_caf_is_byzfls_when_liars_send_far_copies() -> None:
    require_same("caf", with_byzfl("CAF"), make=draw_copies)


def test_nnm_is_byzfls_before_the_mean_and_the_trimmed_mean() -> None:
    for rule, name, needs in (("mean", "Average", (1, 1)), ("trimmed-mean", "TrMean", (2, 1))):
        theirs = with_byzfl("NNM", name)
        require_same(rule, theirs, lambda c: clear_nnm(c.exact, c.f), pre=["nnm"], needs=needs)


def test_clipping_is_byzfls_before_the_mean_and_the_median() -> None:
    for rule, name in (("mean", "Average"), ("median", "Median")):
        theirs = with_byzfl("Clipping", name, c=lambda c: c.length)
        require_same(rule, theirs, pre=["clipping:tau={c.length}"])


def test_arc_is_byzfls_before_the_mean_krum_and_nnm() -> None:
    require_same("mean", with_byzfl("ARC", "Average"), pre=["arc"], needs=(1, 1))
    theirs, clipped = with_byzfl("ARC", "Krum"), (lambda c: reference.arc(c.x, c.f))
    require_same("krum", theirs, lambda c: clear_krum(clipped(c), c.n - c.f - 1), pre=["arc"], excluded=1)
    theirs = with_byzfl("ARC", "NNM", "Median")
    require_same("median", theirs, lambda c: clear_nnm(clipped(c), c.f), pre=["arc", "nnm"])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_buckets_are_byzfls_when_it_shuffles_like_ours(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def order(count: int) -> list[int]:
        return [i for row in bucketing(count, size, b"").rows for i, share in enumerate(row) if share]

    monkeypatch.setattr(np.random, "permutation", lambda vectors: vectors[order(len(vectors))])
    monkeypatch.setattr(torch, "randperm", order)
    theirs = with_byzfl("Bucketing", "Median", s=size)
    require_same("median", theirs, pre=[f"bucketing:s={size}"], needs=(2 * size, 1))


def on_a_line(values: Sequence[int], name: str, f: int, **params: int) -> float:
    layout, spec = Layout((TensorSpec("t", (1,)),)), rule_spec(name, f, params)
    return float(aggregate_values([np.int16([v]) for v in values], layout, Lattice(16, (0,)), spec)[0])


LINE = [0, 2, 3, 4, 7, 8, 9]
"""Of n = 7 with f = 2, Blanchard et al. count the 3 nearest others, ByzFL 4, P2PFL and NEBULA all 6."""


def test_blanchards_krum_and_byzfls_choose_different_updates() -> None:
    # 2: 1 + 4 + 4 = 9; 3: 1 + 1 + 9 = 11; 4: 1 + 4 + 9 = 14; 7: 1 + 4 + 9 = 14; 8: 18; 0: 29; 9: 30.
    assert on_a_line(LINE, "krum", 2) == 2
    assert flower.aggregate_krum([([np.array([float(v)])], 1) for v in LINE], 2, 0) == [2]
    # One more: 3: 11 + 16 = 27; 4: 14 + 16 = 30; 7: 14 + 16 = 30; 2: 9 + 25 = 34; 8: 43; 9: 66; 0: 78.
    column = np.array(LINE, np.float64)[:, None]
    assert byzfl.Krum(2)(column) == byzfl.Krum(2)(torch.tensor(column)) == 3
    assert on_a_line(LINE, "krum", 2, excluded=1) == 3


def test_krum_of_p2pfl_and_nebula_chooses_a_third_update() -> None:
    # 4: 4 + 2 + 1 + 3 + 4 + 5 = 19; 3: 3 + 1 + 1 + 4 + 5 + 6 = 20; 7: 7 + 5 + 4 + 3 + 1 + 2 = 22.
    assert [sum(abs(v - other) for other in LINE) for v in LINE] == [33, 23, 20, 19, 22, 25, 30]
    assert on_a_line(LINE, "krum", 0, excluded=1, power=1) == 4
