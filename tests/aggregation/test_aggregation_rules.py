"""The exact rules against plain fractions, and one digest whatever the machine does in between."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.aggregation import (
    BACKENDS,
    RULES,
    Aggregate,
    BackendUnavailable,
    BoundExceeded,
    ForbiddenValue,
    Lattice,
    Layout,
    RuleInvalid,
    RuleSpec,
    TensorSpec,
    TooFewUpdates,
    WeightsInvalid,
    WrongLength,
    WrongMagic,
    aggregate_updates,
    aggregate_values,
    average_updates,
    encode_integers,
    minimum_updates,
    rule_spec,
)

LAYOUT = Layout((TensorSpec("w", (2, 2)), TensorSpec("b", (3,)), TensorSpec("s", ())))
EXPONENTS = (-5, 2, -5)
UNITS = [-5] * 4 + [2] * 3 + [-5]

Rows = list[list[int]]


BASIC = ["mean", "weighted-mean", "median", "trimmed-mean", "krum", "multi-krum"]
"""Rules that this file writes down once more, in fractions."""
ON_CPU = [name for name in BACKENDS if name != "cuda"]
PARAMETERS = {"cap": 7, "tau": 3.5}


def spec_of(name: str, f: int, pre: tuple[str, ...] = ()) -> RuleSpec:
    needed = {p.name: PARAMETERS[p.name] for p in RULES[name].parameters if not p.optional}
    return rule_spec(name, f, needed, pre)


def aggregate_of(rows: Rows, spec: RuleSpec, bits: int = 16, **options: object) -> Aggregate:
    arrays = [np.array(row, f"int{bits}") for row in rows]
    return aggregate_updates(arrays, LAYOUT, Lattice(bits, EXPONENTS), spec, **options)


def plain_krum_ranking(rows: Rows, f: int) -> list[int]:
    points = [[x * Fraction(2) ** unit for x, unit in zip(row, UNITS, strict=True)] for row in rows]
    scores = []
    for i, left in enumerate(points):
        away = [
            sum((a - b) ** 2 for a, b in zip(left, right, strict=True))
            for j, right in enumerate(points)
            if j != i
        ]
        scores.append(sum(sorted(away)[: len(rows) - f - 2]))
    return sorted(range(len(rows)), key=lambda i: (scores[i], i))


def plain_aggregate(rows: Rows, spec: RuleSpec, claimed: list[int]) -> list[Fraction]:
    """The rule once more, slowly and plainly, in fractions."""
    n, f = len(rows), spec.f
    weights, cut = [1] * n, 0
    match spec.name:
        case "weighted-mean":
            weights = [min(claim, 7) for claim in claimed]
        case "median":
            cut = (n - 1) // 2
        case "trimmed-mean":
            cut = f
        case "krum" | "multi-krum":
            kept = plain_krum_ranking(rows, f)[: 1 if spec.name == "krum" else n - f]
            weights = [int(i in kept) for i in range(n)]
    result = []
    for column in zip(*rows, strict=True):
        terms = (
            sorted(column)[cut : n - cut] if cut else [w * x for w, x in zip(weights, column, strict=True)]
        )
        result.append(Fraction(sum(terms), len(terms) if cut else sum(weights)))
    return result


@st.composite
def rounds(draw: st.DrawFn, names: list[str]) -> tuple[Rows, RuleSpec, list[int], int]:
    bits = draw(st.sampled_from([8, 16]))
    largest = 2 ** (bits - 1) - 1
    f = draw(st.integers(0, 2))
    name = draw(st.sampled_from(names))
    n = draw(st.integers(4 * f + 3 if name == "bulyan" else 2 * f + 3, 11))
    # Few distinct values make ties; wide ones reach the bounds.
    value = st.integers(-2, 2) | st.integers(-largest, largest) | st.sampled_from([-largest, largest])
    rows = draw(st.lists(st.lists(value, min_size=8, max_size=8), min_size=n, max_size=n))
    claimed = draw(st.lists(st.integers(1, 20), min_size=n, max_size=n))
    return rows, spec_of(name, 0 if name == "weighted-trimmed-mean" else f), claimed, bits


@settings(deadline=None, max_examples=100)
@given(rounds(BASIC), st.sampled_from(ON_CPU))
def test_every_rule_equals_its_plain_definition(drawn, backend):
    rows, spec, claimed, bits = drawn
    found = aggregate_of(rows, spec, bits, weights=claimed, backend=backend)
    values = [Fraction(int(x), found.denominator) for x in found.numerators]
    assert values == plain_aggregate(rows, spec, claimed)


@settings(deadline=None, max_examples=50)
@given(rounds(sorted(RULES)))
def test_gram_matrix_and_products_are_the_exact_inner_products(drawn):
    rows, spec, claimed, bits = drawn
    found = aggregate_of(rows, spec, bits, weights=claimed)

    def inner(left: list[int], right: list[int]) -> Fraction:
        return sum(
            (a * b * Fraction(4) ** unit for a, b, unit in zip(left, right, UNITS, strict=True)), Fraction(0)
        )

    unit = Fraction(4) ** found.gram.exponent
    numerators = [int(x) for x in found.numerators]
    for i, left in enumerate(rows):
        assert [entry * unit for entry in found.gram.entries[i]] == [inner(left, right) for right in rows]
        assert found.products[i] * unit == inner(left, numerators)
    assert found.square * unit == inner(numerators, numerators)


@settings(deadline=None, max_examples=50)
@given(rounds(BASIC), st.randoms(use_true_random=False))
def test_the_order_of_updates_changes_nothing_but_the_choice_among_ties(drawn, random):
    rows, spec, claimed, bits = drawn
    order = list(range(len(rows)))
    random.shuffle(order)
    here = aggregate_of(rows, spec, bits, weights=claimed)
    there = aggregate_of([rows[i] for i in order], spec, bits, weights=[claimed[i] for i in order])
    assert [[here.gram.entries[i][j] for j in order] for i in order] == [list(r) for r in there.gram.entries]
    ranking = [rows[i] for i in plain_krum_ranking(rows, spec.f)]
    moved = [[rows[i] for i in order][i] for i in plain_krum_ranking([rows[i] for i in order], spec.f)]
    if spec.name not in ("krum", "multi-krum") or ranking == moved:
        assert here.digest() == there.digest()


def write_updates(folder: Path, n: int, layout: Layout, lattice: Lattice, seed: int) -> list[Path]:
    random = np.random.default_rng(seed)
    paths = []
    for index in range(n):
        integers = random.integers(-lattice.largest, lattice.largest + 1, layout.size).astype(lattice.dtype)
        paths.append(folder / f"update-{index}")
        paths[-1].write_bytes(encode_integers(integers, layout, lattice))
    return paths


WIDE = Layout((TensorSpec("w", (300, 30)), TensorSpec("b", (7,)), TensorSpec("v", (2, 2500))))
WIDE_LATTICE = Lattice(16, (-12, 3, 3))


PREAGGREGATED = [
    (),
    ("nnm",),
    ("arc", "nnm"),
    ("bucketing:s=2",),
    ("clipping:tau=900", "bucketing:s=2", "arc"),
]


@pytest.mark.parametrize("pre", PREAGGREGATED, ids="-".join)
@pytest.mark.parametrize("name", sorted(RULES))
def test_one_digest_over_threads_chunks_backends_and_files_or_arrays(name, pre, tmp_path):
    if "bucketing:s=2" in pre and (name == "monna" or any(p.name == "cap" for p in RULES[name].parameters)):
        pre = tuple(entry for entry in pre if entry != "bucketing:s=2")
    spec = spec_of(name, 1, pre)
    paths = write_updates(tmp_path, 14, WIDE, WIDE_LATTICE, seed=5)
    arrays = [np.frombuffer(path.read_bytes()[80:], "<i2") for path in paths]
    seen, values, plain = set(), set(), set()
    for sources, backend, threads, chunk in [
        (paths, "numpy", 1, 65_536),
        (paths, "numpy", 5, 313),
        (arrays, "numpy", 2, 4_096),
        (paths, "torch", 2, 777),
        (paths, "numba", 1, None),
        (arrays, "numba", 2, 1_001),
        (arrays, "numba", 1, 65_536),
    ]:
        options = {"weights": range(1, 15), "seed": b"round", "backend": backend, "threads": threads}
        found = aggregate_updates(sources, WIDE, WIDE_LATTICE, spec, **options, chunk=chunk)
        state = hashlib.sha256(repr((found.gram, found.products, found.square, found.rule_weights)).encode())
        seen.add((found.digest(), state.digest()))
        values.add(aggregate_values(sources, WIDE, WIDE_LATTICE, spec, **options, chunk=chunk).tobytes())
        plain.add(average_updates(sources, WIDE, WIDE_LATTICE, spec, **options, chunk=chunk).digest())
    assert len(seen) == len(values) == 1
    assert plain == {found.digest()}
    units = np.repeat([2.0**-12, 2.0**3], [9_000, 5_007])
    assert values == {(found.numerators / found.denominator * units).astype(np.float32).tobytes()}


PROGRAM = """
import sys
from pathlib import Path
from folkmoot.aggregation import Lattice, Layout, RuleSpec, TensorSpec, aggregate_updates
layout = Layout((TensorSpec("w", (300, 30)), TensorSpec("b", (7,)), TensorSpec("v", (2, 2500))))
paths = [Path(sys.argv[1]) / f"update-{i}" for i in range(9)]
for backend in ("numpy", "torch", "numba"):
    for name in ("mean", "median", "trimmed-mean", "krum", "multi-krum"):
        found = aggregate_updates(paths, layout, Lattice(16, (-12, 3, 3)), RuleSpec(name, 2), backend=backend)
        print(name, found.digest().hex(), hash(found.gram))
"""


def test_one_digest_with_one_and_two_openmp_threads(tmp_path):
    write_updates(tmp_path, 9, WIDE, WIDE_LATTICE, seed=6)
    outputs = []
    for threads in ("1", "2"):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONHASHSEED": "0",
        }
        outputs.append(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, str(tmp_path)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            ).stdout.splitlines()
        )
    assert outputs[0] == outputs[1]
    assert outputs[0][:5] == outputs[0][5:10] == outputs[0][10:]


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", sorted(RULES))
def test_the_largest_values_of_the_most_members_do_not_overflow(name, bits, backend):
    largest, columns, n = 2 ** (bits - 1) - 1, 501, 256
    row = np.full(columns, largest, f"int{bits}")
    row[1::2] = -largest
    layout, lattice = Layout((TensorSpec("w", (columns,)),)), Lattice(bits, (100,))
    most = {"cap": 2**24, "tau": 10**9}
    needed = {p.name: most[p.name] for p in RULES[name].parameters if not p.optional}
    found = aggregate_updates(
        [row] * n, layout, lattice, rule_spec(name, 0, needed), weights=[2**64] * n, backend=backend
    )
    assert found.denominator <= 2**32
    assert (abs(found.numerators) <= largest * found.denominator).all()
    assert found.gram.entries[3][200] == columns * largest**2
    numerators = [int(x) for x in found.numerators]
    assert found.products[17] == sum(a * int(b) for a, b in zip(numerators, row, strict=True))
    assert found.square == sum(a * a for a in numerators)
    if name not in CLIPPED:
        assert (found.numerators == row.astype(np.int64) * found.denominator).all()


CLIPPED = {"centered-clipping"}
"""A tau of 10^9 shortens vectors of 2^115."""


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("name", [name for name in sorted(RULES) if name not in CLIPPED])
def test_the_largest_mixed_rows_do_not_overflow(name, backend):
    """Rows of 2^15 times the largest integers, from two pre-aggregators with a denominator over 2^32."""
    row = np.array([32767, -32767, 1, 0], np.int16)
    layout, lattice = Layout((TensorSpec("w", (4,)),)), Lattice(16, (0,))
    pre = () if name == "monna" else ("arc", "clipping:tau=40000", "nnm")
    found = aggregate_updates(
        [row] * 256, layout, lattice, spec_of(name, 0, pre), weights=[1] * 256, backend=backend
    )
    assert (abs(found.numerators) <= 32767 * found.denominator).all()
    values = found.numerators / found.denominator
    np.testing.assert_allclose(values, row * min(1, 40000 / np.sqrt(2 * 32767**2)) if pre else row, atol=1e-4)


def test_exponents_as_far_apart_as_the_bounds_still_give_an_exact_gram_matrix():
    layout = Layout((TensorSpec("w", (1,)), TensorSpec("b", (1,))))
    rows = [np.array([1, 1], np.int16), np.array([3, -5], np.int16)]
    found = aggregate_updates(rows, layout, Lattice(16, (-110, 100)), RuleSpec("mean", 0))
    assert found.gram.exponent == -110
    assert found.gram.entries[0][1] == 3 - 5 * 2**420


def test_multi_krum_averages_the_m_best_and_krum_ties_go_to_the_lower_index():
    rows = [[index] * 8 for index in (0, 0, 1, 1, 50)]
    assert aggregate_of(rows, RuleSpec("krum", 1)).rule_weights == (1, 0, 0, 0, 0)
    assert aggregate_of(rows, RuleSpec("multi-krum", 1)).rule_weights == (1, 1, 1, 1, 0)
    assert aggregate_of(rows, RuleSpec("multi-krum", 1, (("m", 2),))).rule_weights == (1, 1, 0, 0, 0)


def test_a_claim_counts_for_at_most_the_cap():
    rows = [[0] * 8, [10] * 8]
    found = aggregate_of(rows, RuleSpec("weighted-mean", 0, (("cap", 3),)), weights=[1, 2**64 - 1])
    assert (found.denominator, found.numerators[0]) == (4, 30)


@pytest.mark.parametrize(
    ("name", "f", "fewest"),
    [
        ("mean", 3, 1),
        ("weighted-mean", 3, 1),
        ("median", 3, 7),
        ("trimmed-mean", 3, 7),
        ("krum", 3, 9),
        ("multi-krum", 3, 9),
        ("bulyan", 3, 15),
        ("meamed", 3, 7),
        ("caf", 3, 7),
        ("foolsgold", 3, 1),
    ],
)
def test_one_update_below_the_minimum_is_refused(name, f, fewest):
    spec = spec_of(name, f)
    assert minimum_updates(spec) == fewest
    aggregate_of([[1] * 8] * fewest, spec, weights=[1] * fewest)
    with pytest.raises(TooFewUpdates, match=f"needs {fewest} updates, found {fewest - 1}"):
        aggregate_of([[1] * 8] * (fewest - 1), spec, weights=[1] * (fewest - 1))


def test_multi_krum_needs_as_many_updates_as_it_averages():
    assert minimum_updates(RuleSpec("multi-krum", 1, (("m", 6),))) == 6


@pytest.mark.parametrize("weights", [None, [1], [1, 2, -1], [0, 0, 0]])
def test_weights_that_are_missing_too_few_negative_or_all_zero_are_refused(weights):
    with pytest.raises(WeightsInvalid):
        aggregate_of([[1] * 8] * 3, spec_of("weighted-mean", 0), weights=weights)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RuleSpec("average", 0),
        lambda: RuleSpec("mean", -1),
        lambda: RuleSpec("mean", True),
        lambda: RuleSpec("mean", 256),
        lambda: RuleSpec("mean", 0, (("m", 1),)),
        lambda: RuleSpec("multi-krum", 0, (("m", 0),)),
        lambda: RuleSpec("multi-krum", 0, (("m", 1), ("m", 2))),
        lambda: RuleSpec("weighted-mean", 0),
        lambda: RuleSpec.from_document({"name": "mean", "f": 0}),
        lambda: RuleSpec.from_document({"name": ["mean"], "f": 0, "params": {}, "pre": []}),
        lambda: RuleSpec.from_document({"name": "mean", "f": 0, "params": {1: 1}, "pre": []}),
        lambda: RuleSpec.from_document({"name": "mean", "f": 0, "params": {}}),
        lambda: RuleSpec.from_document({"name": "mean", "f": 0, "params": {}, "pre": ["nnm"]}),
        lambda: RuleSpec.from_document(
            {"name": "mean", "f": 0, "params": {}, "pre": [{"name": "x", "params": {}}]}
        ),
        lambda: rule_spec("mean", 0, pre=["bucketing"]),
        lambda: rule_spec("mean", 0, pre=["clipping:tau"]),
        lambda: rule_spec("centered-clipping", 0, {"tau": 1e-9}),
        lambda: rule_spec("centered-clipping", 0, {"tau": "nan"}),
        lambda: rule_spec("weighted-mean", 0, {"cap": 3}, ["bucketing:s=2"]),
        lambda: RuleSpec.from_document({"name": "mean", "f": 1.0, "params": {}, "pre": []}),
        lambda: RuleSpec.from_document("mean"),
    ],
)
def test_a_rule_that_is_not_one_is_refused(make):
    with pytest.raises(RuleInvalid):
        make()


def test_a_rule_survives_its_document_and_has_a_canonical_text():
    spec = RuleSpec("multi-krum", 2, (("m", 5),))
    assert RuleSpec.from_document(spec.to_document()) == spec
    assert spec.canonical() == b"multi-krum f=2 m=5"
    assert spec.digest() == hashlib.sha256(b"multi-krum f=2 m=5").digest()
    mixed = rule_spec("centered-clipping", 1, {"tau": 1.5}, ["bucketing:s=2", "nnm"])
    assert RuleSpec.from_document(mixed.to_document()) == mixed
    assert mixed.canonical() == b"bucketing s=2 | nnm | centered-clipping f=1 tau=1500000"


def test_a_bad_source_is_refused_with_its_index(tmp_path):
    good, cut, foreign, forbidden = write_updates(tmp_path, 4, WIDE, WIDE_LATTICE, seed=7)
    cut.write_bytes(cut.read_bytes()[:-2])
    foreign.write_bytes(b"PK" + foreign.read_bytes()[2:])
    forbidden.write_bytes(forbidden.read_bytes()[:-2] + b"\x00\x80")
    for bad, error in [(cut, WrongLength), (foreign, WrongMagic), (forbidden, ForbiddenValue)]:
        for threads in (1, 2):
            with pytest.raises(error, match=r"^update 1: "):
                aggregate_updates([good, bad], WIDE, WIDE_LATTICE, RuleSpec("mean", 0), threads=threads)


def test_impossible_settings_are_refused():
    rows = [[1] * 8] * 3
    with pytest.raises(BackendUnavailable, match="known: auto, numpy, numba, torch"):
        aggregate_of(rows, RuleSpec("mean", 0), backend="jax")
    for options in ({"chunk": 0}, {"chunk": 65_537}, {"threads": 0}):
        with pytest.raises(BoundExceeded):
            aggregate_of(rows, RuleSpec("mean", 0), **options)
    with pytest.raises(BoundExceeded, match="257 updates"):
        aggregate_of([[1] * 8] * 257, RuleSpec("mean", 0))
