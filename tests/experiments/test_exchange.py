"""A round in memory is the nodes' arithmetic, piece by piece, and the lattice follows the updates."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from folkmoot.aggregation import (
    Lattice,
    Layout,
    RuleSpec,
    TensorSpec,
    aggregate_updates,
    apply_aggregate,
    needed_exponents,
    next_exponents,
    quantize,
    rule_spec,
    spectral_rules,
)
from folkmoot.experiments.exchange import LatticeExchange

MEMBERS, FAULTY, SEED = 7, 2, 5
LAYOUT = Layout((TensorSpec("weight", (4, 10)), TensorSpec("bias", (4,))))
EXAMPLES = (10, 20, 30, 40, 50, 60, 70)
RULES = [
    rule_spec("mean", 2),
    rule_spec("weighted-mean", 2, {"cap": 40}),
    rule_spec("trimmed-mean", 2),
    rule_spec("krum", 2, {}, ["nnm"]),
    rule_spec("rfa", 2, {"cap": 30}),
]
BUCKETS = rule_spec("median", 1, {}, ["bucketing:s=2"])


def updates(number: int, scale: float = 0.01) -> np.ndarray:
    random = np.random.default_rng([SEED, number])
    return (scale * random.standard_normal((MEMBERS, LAYOUT.size))).astype(np.float32)


def start() -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(LAYOUT.size).astype(np.float32)


def exchange(rule: RuleSpec, bits: int = 16, exponent: int = -12, *, scored: bool = True) -> LatticeExchange:
    return LatticeExchange(LAYOUT, rule, MEMBERS, bits, exponent, SEED, scored=scored)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rule", [*RULES, BUCKETS], ids=lambda rule: rule.canonical().decode())
def test_three_rounds_are_the_pieces_of_the_aggregation_put_together(rule: RuleSpec, bits: int) -> None:
    ours, weights = exchange(rule, bits), start()
    unscored, others = exchange(rule, bits, scored=False), start()
    expected, lattice = start(), Lattice(bits, (-12, -12))
    for number in range(3):
        sent = updates(number, scale=0.01 * 3.0**number)
        weights = ours.apply(weights, sent, EXAMPLES, number).weights
        aggregate = aggregate_updates(
            [quantize(update, LAYOUT, lattice) for update in sent],
            LAYOUT,
            lattice,
            rule,
            weights=EXAMPLES,
            seed=hashlib.sha256(f"folkmoot/experiment/{SEED}/{number}".encode()).digest(),
        )
        expected = apply_aggregate(expected, aggregate, LAYOUT, lattice)
        published = [needed_exponents(update, LAYOUT, bits) for update in sent]
        lattice = Lattice(bits, next_exponents(published, FAULTY, lattice))
        others = unscored.apply(others, sent, EXAMPLES, number).weights
        assert weights.tobytes() == others.tobytes() == expected.tobytes()
        assert ours.lattice == unscored.lattice == lattice


def test_the_exponents_follow_the_updates_tensor_by_tensor() -> None:
    ours, weights = exchange(rule_spec("mean", 2)), start()
    sent = updates(0)
    sent[:, 40:] *= 64
    ours.apply(weights, sent, EXAMPLES, 0)
    first = ours.lattice.exponents
    assert 4 <= first[1] - first[0] <= 8
    ours.apply(weights, 4 * sent, EXAMPLES, 1)
    assert ours.lattice.exponents == (first[0] + 2, first[1] + 2)


def test_two_liars_of_seven_cannot_move_the_lattice() -> None:
    honest, attacked = exchange(rule_spec("median", 2)), exchange(rule_spec("median", 2))
    sent = updates(0)
    honest.apply(start(), sent, EXAMPLES, 0)
    sent[5:] = 1e30
    attacked.apply(start(), sent, EXAMPLES, 0)
    difference = np.subtract(attacked.lattice.exponents, honest.lattice.exponents)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_left_out_with_its_claim(broken: float) -> None:
    rule, sent = rule_spec("weighted-mean", 1, {"cap": 100}), updates(0)
    sent[2, 7] = broken
    found = exchange(rule).apply(start(), sent, EXAMPLES, 0)
    kept = [0, 1, 3, 4, 5, 6]
    claims = [EXAMPLES[member] for member in kept]
    assert found.included == tuple(kept)
    assert np.allclose(found.weights - start(), np.average(sent[kept], axis=0, weights=claims), atol=2e-4)


def test_too_few_updates_leave_the_model_as_it_is() -> None:
    sent, weights = updates(0), start()
    sent[1:] = np.nan
    found = exchange(rule_spec("median", 2)).apply(weights, sent, EXAMPLES, 0)
    assert found.aggregate is None
    assert found.included == (0,)
    assert found.weights.tobytes() == weights.tobytes()


def test_a_model_that_would_overflow_stays_as_it_is() -> None:
    weights = np.full(LAYOUT.size, np.finfo(np.float32).max, np.float32)
    ours = exchange(rule_spec("mean", 2), exponent=100)
    sent = np.full((MEMBERS, LAYOUT.size), 1e34, np.float32)
    found = ours.apply(weights, sent, EXAMPLES, 0)
    assert found.aggregate is None
    assert found.weights.tobytes() == weights.tobytes()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.canonical().decode())
def test_liars_foresee_the_aggregate_that_the_round_then_has(rule: RuleSpec) -> None:
    ours, weights = exchange(rule), start()
    for number in range(2):
        sent = updates(number)
        foreseen = ours.foreseen(EXAMPLES, FAULTY)(sent)
        lattice = ours.lattice
        applied = ours.apply(weights, sent, EXAMPLES, number)
        assert applied.aggregate is not None
        value = applied.aggregate.numerators / applied.aggregate.denominator
        steps = np.repeat(np.exp2(lattice.exponents), np.diff(LAYOUT.offsets))
        assert np.allclose(foreseen, value * steps, rtol=1e-6, atol=1e-12)


def test_liars_may_try_other_lies_on_the_same_round() -> None:
    ours, sent = exchange(rule_spec("mean", 2)), updates(0)
    defence = ours.foreseen(EXAMPLES, FAULTY)
    honest = defence(sent)
    sent[5:] *= -1
    assert np.allclose(defence(sent), exchange(rule_spec("mean", 2)).foreseen(EXAMPLES, FAULTY)(sent))
    assert not np.allclose(defence(sent), honest)


@pytest.mark.parametrize(
    "rule", [rule_spec("smea", 2), rule_spec("monna", 2, {"pivot": 50})], ids=lambda rule: rule.name
)
def test_liars_foresee_a_round_that_the_rule_cannot_aggregate_as_no_move(
    rule: RuleSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # smea gives its search up at once, and the update that monna trusts never comes.
    monkeypatch.setattr(spectral_rules, "SMEA_STEPS", 1)
    ours, sent = exchange(rule), updates(0)
    assert not ours.foreseen(EXAMPLES, FAULTY)(sent).any()
    assert ours.apply(start(), sent, EXAMPLES, 0).aggregate is None
