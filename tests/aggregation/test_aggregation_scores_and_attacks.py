"""Attacks do what their papers say; scores tell liars and idlers from those who helped."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.aggregation import (
    ATTACKS,
    FULL_SCORE,
    Aggregate,
    AttackInvalid,
    Gram,
    Lattice,
    Layout,
    RuleSpec,
    ScoreInvalid,
    ScoreSpec,
    TensorSpec,
    aggregate_updates,
    craft_updates,
    flip_labels,
    needed_exponents,
    next_exponents,
    quantize,
    scores,
)
from folkmoot.aggregation.attacks import little_is_enough_z
from folkmoot.aggregation.networks import median_ranks, network_for_sum, trimmed_ranks

LAYOUT = Layout((TensorSpec("w", (40, 50)), TensorSpec("b", (50,))))


def honest_updates(n: int, seed: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    common = random.normal(0, 0.01, LAYOUT.size)
    return (common + random.normal(0, 0.015, (n, LAYOUT.size))).astype(np.float32)


def aggregate_floats(updates: np.ndarray, spec: RuleSpec) -> Aggregate:
    needed = [needed_exponents(update, LAYOUT, 16) for update in updates]
    lattice = Lattice(16, next_exponents(needed, 2, Lattice(16, (0, 0))))
    rows = [quantize(update, LAYOUT, lattice) for update in updates]
    return aggregate_updates(rows, LAYOUT, lattice, spec)


def with_two_sign_flippers(seed: int) -> np.ndarray:
    updates = honest_updates(8, seed)
    for liar in (6, 7):
        (updates[liar],) = craft_updates(
            "sign-flip", updates[liar : liar + 1], 1, np.random.default_rng(0), {"strength": 10}
        )
    return updates


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_sign_flippers_score_zero_and_the_honest_clearly_above(rule):
    found = scores(aggregate_floats(with_two_sign_flippers(3), RuleSpec(rule, 2)), ScoreSpec())
    assert max(found[6:]) == 0
    assert min(found[:6]) > FULL_SCORE // 8


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "multi-krum"])
def test_a_member_that_sends_zeros_scores_zero(rule):
    updates = np.vstack([with_two_sign_flippers(3), np.zeros((1, LAYOUT.size), np.float32)])
    found = scores(aggregate_floats(updates, RuleSpec(rule, 2)), ScoreSpec())
    assert max(found[6:]) == 0
    assert min(found[:6]) > FULL_SCORE // 8


def test_a_shrunken_copy_has_full_similarity_and_little_influence():
    updates = honest_updates(5)
    updates[4] = updates[0] / 20
    aggregate = aggregate_floats(updates, RuleSpec("mean", 0))
    similarity = scores(aggregate, ScoreSpec((("similarity", 1),)))
    influence = scores(aggregate, ScoreSpec((("influence", 1),)))
    assert abs(similarity[4] - similarity[0]) < 0.02 * FULL_SCORE
    assert influence[4] < influence[0] / 15


def test_scores_are_the_rounded_down_formula():
    aggregate = Aggregate(np.zeros(0, np.int64), 1, (1, 1), Gram(((9, 6), (6, 25)), 0), (15, 31), 46)
    expected = isqrt(FULL_SCORE**2 * 15**2 // (9 * 46))
    assert scores(aggregate, ScoreSpec((("similarity", 1),)))[0] == expected
    assert scores(aggregate, ScoreSpec((("norm", 1),))) == (FULL_SCORE, isqrt(FULL_SCORE**2 * 9 // 25))
    mixed = scores(aggregate, ScoreSpec((("norm", 2), ("similarity", 1))))
    assert mixed[0] == (2 * FULL_SCORE + expected) // 3


@given(st.lists(st.lists(st.integers(-100, 100), min_size=4, max_size=4), min_size=1, max_size=5))
def test_scores_are_always_uint16_whatever_the_updates(rows):
    layout = Layout((TensorSpec("w", (4,)),))
    arrays = [np.array(row, np.int8) for row in rows]
    aggregate = aggregate_updates(arrays, layout, Lattice(8, (0,)), RuleSpec("median", 0))
    spec = ScoreSpec((("influence", 1), ("norm", 1), ("similarity", 1)))
    assert all(0 <= score <= 65_535 for score in scores(aggregate, spec))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScoreSpec(()),
        lambda: ScoreSpec((("similarity", 0),)),
        lambda: ScoreSpec((("similarity", -1),)),
        lambda: ScoreSpec((("beauty", 1),)),
        lambda: ScoreSpec((("similarity", 1), ("influence", 1))),
        lambda: ScoreSpec.from_document([("similarity", 1)]),
        lambda: ScoreSpec.from_document({"similarity": 1.5}),
    ],
)
def test_scores_that_are_unknown_or_weigh_nothing_are_refused(make):
    with pytest.raises(ScoreInvalid):
        make()


def test_a_score_specification_survives_its_document():
    assert ScoreSpec.from_document(ScoreSpec().to_document()) == ScoreSpec()


def test_sign_flip_and_inner_product_send_the_negative_mean():
    honest = np.array([[1, 2], [3, 6]], np.float32)
    random = np.random.default_rng(0)
    assert craft_updates("sign-flip", honest, 2, random, {"strength": 10}).tolist() == [[-20, -40]] * 2
    assert craft_updates("inner-product", honest, 1, random, {"epsilon": 0.5}).tolist() == [[-1, -2]]


def test_a_little_is_enough_stays_z_deviations_from_the_mean():
    honest = np.array([[1, 0], [3, 0], [1, 0], [3, 0], [2, 0]], np.float32)
    (sent,) = craft_updates("little-is-enough", honest, 1, np.random.default_rng(0), {"z": 0.5})
    assert sent.tolist() == pytest.approx([2 - 0.5 * 0.8**0.5, 0])
    # n = 50, f = 24: s = 2 supporters among 26 honest, Phi(z) = 24 / 26.
    assert little_is_enough_z(50, 24) == pytest.approx(1.4261, abs=1e-4)


def test_gaussian_noise_has_its_deviation_and_ignores_the_honest():
    sent = craft_updates("gaussian", honest_updates(1), 3, np.random.default_rng(1), {"std": 2.0})
    assert sent.std() == pytest.approx(2.0, rel=0.05)
    assert abs(sent.mean()) < 0.1


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.craft])
def test_a_seed_replays_an_attack(name):
    digests = {
        hashlib.sha256(craft_updates(name, honest_updates(5), 2, np.random.default_rng(9)).tobytes()).digest()
        for _ in range(2)
    }
    assert len(digests) == 1


def test_labels_are_mirrored():
    assert flip_labels(np.array([0, 3, 9], np.uint8), 10).tolist() == [9, 6, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: craft_updates("nothing", honest_updates(1), 1, np.random.default_rng(0)),
        lambda: craft_updates("label-flip", honest_updates(1), 1, np.random.default_rng(0)),
        lambda: craft_updates("sign-flip", honest_updates(1), 1, np.random.default_rng(0), {"z": 1}),
        lambda: craft_updates("gaussian", honest_updates(1), 1, np.random.default_rng(0), {"std": -1}),
        lambda: craft_updates("sign-flip", honest_updates(1)[0], 1, np.random.default_rng(0)),
        lambda: craft_updates("little-is-enough", honest_updates(1), 1, np.random.default_rng(0)),
        lambda: flip_labels(np.array([10]), 10),
    ],
)
def test_an_attack_that_cannot_be_is_refused(make):
    with pytest.raises(AttackInvalid):
        make()


@given(st.integers(1, 12), st.data())
def test_a_pruned_network_sums_the_wanted_ranks(lines, data):
    ranks = data.draw(
        st.sampled_from([median_ranks(lines), *(trimmed_ranks(lines, f) for f in range((lines + 1) // 2))])
        | st.sets(st.integers(0, lines - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
    )
    values = data.draw(st.lists(st.integers(-3, 3), min_size=lines, max_size=lines))
    sorted_values = list(values)
    for comparison in network_for_sum(lines, ranks):
        low, high = sorted_values[comparison.low], sorted_values[comparison.high]
        sorted_values[comparison.low], sorted_values[comparison.high] = min(low, high), max(low, high)
    expected = sum(sorted(values)[rank] for rank in ranks)
    assert Fraction(sum(sorted_values[rank] for rank in ranks)) == expected
