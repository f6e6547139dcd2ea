"""Scores tell liars and idlers from those who helped, exactly, in whatever order members come."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations
from math import isqrt, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.aggregation import (
    FULL_SCORE,
    SCORES,
    Aggregate,
    Gram,
    Lattice,
    Layout,
    RuleSpec,
    ScoreInvalid,
    ScoreSpec,
    TensorSpec,
    aggregate_updates,
    craft_updates,
    needed_exponents,
    next_exponents,
    quantize,
    scores,
)
from folkmoot.aggregation.shapley import CosineGame, exact_values, sampled_values, shapley_values

LAYOUT = Layout((TensorSpec("w", (40, 50)), TensorSpec("b", (50,))))
EVERY_SCORE = ScoreSpec(tuple((name, 1) for name in sorted(SCORES)))
ONE = 1 << 30

rows_of_updates = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=n, max_size=n)
)


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


def around(updates: Sequence[Sequence[int]], numerators: Sequence[int], denominator: int = 1) -> Aggregate:
    """Updates of small integers beside an aggregate that need not be their mean."""
    rows, result = np.array(updates, dtype=object), np.array(numerators, dtype=object)
    gram = Gram(tuple(tuple(row) for row in (rows @ rows.T).tolist()), 0)
    values = np.array(numerators, np.int64)
    return Aggregate(values, denominator, None, gram, tuple((rows @ result).tolist()), int(result @ result))


def around_the_sum(updates: Sequence[Sequence[int]]) -> Aggregate:
    return around(updates, np.sum(updates, axis=0).tolist(), len(updates))


def random_updates(n: int, seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    common = random.normal(0, 60, 40)
    return np.rint(common + random.normal(0, 90, (n, 40))).astype(int).tolist()


def one(name: str, aggregate: Aggregate) -> tuple[int, ...]:
    return scores(aggregate, ScoreSpec(((name, 1),)))


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_sign_flippers_score_zero_and_the_honest_clearly_above(rule):
    found = scores(aggregate_floats(with_two_sign_flippers(3), RuleSpec(rule, 2)), ScoreSpec())
    assert max(found[6:]) == 0
    assert min(found[:6]) > FULL_SCORE // 8


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "multi-krum"])
@pytest.mark.parametrize("spec", [ScoreSpec(), ScoreSpec((("shapley", 1),))], ids=["default", "shapley"])
def test_a_member_that_sends_zeros_scores_zero(rule, spec):
    updates = np.vstack([with_two_sign_flippers(3), np.zeros((1, LAYOUT.size), np.float32)])
    found = scores(aggregate_floats(updates, RuleSpec(rule, 2)), spec)
    assert max(found[6:]) == 0
    assert min(found[:6]) > FULL_SCORE // 8


def test_a_shrunken_copy_has_full_similarity_and_little_influence():
    updates = honest_updates(5)
    updates[4] = updates[0] / 20
    aggregate = aggregate_floats(updates, RuleSpec("mean", 0))
    similarity, influence = one("similarity", aggregate), one("influence", aggregate)
    assert abs(similarity[4] - similarity[0]) < 0.02 * FULL_SCORE
    assert influence[4] < influence[0] / 15


def test_scores_are_the_rounded_down_formula():
    aggregate = Aggregate(np.zeros(0, np.int64), 1, (1, 1), Gram(((9, 6), (6, 25)), 0), (15, 31), 46)
    expected = isqrt(FULL_SCORE**2 * 15**2 // (9 * 46))
    assert one("similarity", aggregate)[0] == expected
    assert one("norm", aggregate) == (FULL_SCORE, isqrt(FULL_SCORE**2 * 9 // 25))
    mixed = scores(aggregate, ScoreSpec((("norm", 2), ("similarity", 1))))
    assert mixed[0] == (2 * FULL_SCORE + expected) // 3


@given(st.lists(st.lists(st.integers(-100, 100), min_size=4, max_size=4), min_size=1, max_size=5))
def test_scores_are_always_uint16_whatever_the_updates(rows):
    layout = Layout((TensorSpec("w", (4,)),))
    arrays = [np.array(row, np.int8) for row in rows]
    aggregate = aggregate_updates(arrays, layout, Lattice(8, (0,)), RuleSpec("median", 0))
    for name in SCORES:
        assert all(type(score) is int and 0 <= score <= 65_535 for score in one(name, aggregate))


@pytest.mark.parametrize("name", SCORES)
@given(data=st.data())
def test_a_permutation_of_the_members_permutes_their_scores(name, data):
    rows = data.draw(rows_of_updates)
    order = data.draw(st.permutations(range(len(rows))))
    numerators = data.draw(st.lists(st.integers(-9, 9), min_size=3, max_size=3))
    found = one(name, around(rows, numerators))
    assert one(name, around([rows[i] for i in order], numerators)) == tuple(found[i] for i in order)


@pytest.mark.parametrize("n", [1, 2, 5, 17])
@pytest.mark.parametrize("name", ["similarity", "influence", "norm", "shapley"])
def test_updates_of_zeros_score_nothing(name, n):
    assert one(name, around_the_sum([[0, 0]] * n)) == (0,) * n


@pytest.mark.parametrize("name", SCORES)
def test_a_member_alone_has_the_full_score(name):
    assert one(name, around_the_sum([[3, -4]])) == (FULL_SCORE,)


def test_the_krum_score_compares_with_the_smallest_sum_of_near_distances():
    # n = 5: two neighbours. The sums for 0, 1, 2, 3 and 90 are 1 + 4, 1 + 1, 1 + 1, 1 + 4 and 87^2 + 88^2.
    found = one("krum", around([[0], [1], [2], [3], [90]], [2]))
    assert found == (FULL_SCORE * 2 // 5, FULL_SCORE, FULL_SCORE, FULL_SCORE * 2 // 5, 8)


def test_where_a_majority_sends_the_same_nobody_else_is_near_the_crowd():
    found = one("krum", around([[7], [7], [7], [8], [9]], [7]))
    assert found == (FULL_SCORE, FULL_SCORE, FULL_SCORE, 0, 0)


def shapley_by_orders(aggregate: Aggregate) -> list[Fraction]:
    """The definition, with every order in which members join and the sums of the coalitions themselves."""
    game = CosineGame.of(aggregate)
    count = len(game.products)
    gained = [Fraction(0)] * count
    for order in (orders := list(permutations(range(count)))):
        last = 0
        for size, joining in enumerate(order, start=1):
            coalition = order[:size]
            value = game.cosine(
                sum(game.products[i] for i in coalition),
                sum(game.gram[i][j] for i in coalition for j in coalition),
            )
            gained[joining] += value - last
            last = value
    return [gain / (len(orders) * ONE) for gain in gained]


@settings(deadline=None)
@given(rows_of_updates, st.lists(st.integers(-9, 9), min_size=3, max_size=3), st.integers(1, 5))
def test_shapley_values_are_the_mean_over_all_orders(rows, numerators, denominator):
    aggregate = around(rows, numerators, denominator)
    assert list(shapley_values(CosineGame.of(aggregate))) == shapley_by_orders(aggregate)


def test_a_coalition_is_worth_the_cosine_of_the_mean_of_its_bounded_updates():
    rows, numerators = random_updates(4, 1), random_updates(1, 2)[0]
    rows[2] = [50 * value for value in rows[2]]
    bounded, result = np.array(rows, float), np.array(numerators, float)
    norms = np.linalg.norm(bounded, axis=1)
    bounded *= np.minimum(1, np.sort(norms)[1] / norms)[:, None]
    for mask, value in enumerate(CosineGame.of(around(rows, numerators)).all_coalitions()):
        mean = bounded[[i for i in range(4) if mask >> i & 1]].sum(axis=0)
        expected = mean @ result / (np.linalg.norm(mean) * np.linalg.norm(result)) if mask else 0
        assert value / ONE == pytest.approx(expected, abs=1e-8)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=10))
def test_the_mean_game_has_its_closed_form(worth):
    # v(S) = mean of b over S: phi_i = (b_i + (H_n - 1) (b_i - mean of the other b)) / n.
    n, unit = len(worth), 2520
    table = [0] * (1 << n)
    for mask in range(1, 1 << n):
        members = [worth[i] for i in range(n) if mask >> i & 1]
        table[mask] = sum(members) * unit // len(members)
    harmonic = sum(Fraction(1, k) for k in range(1, n + 1))
    for b, value in zip(worth, exact_values(table), strict=True):
        others = Fraction(sum(worth) - b, max(1, n - 1))
        assert value * ONE / unit == (b + (harmonic - 1) * (b - others)) / n


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40])
def test_members_that_bring_directions_of_their_own_share_alike(n):
    rows = [[int(i == j) for j in range(n)] for i in range(n)]
    values = shapley_values(CosineGame.of(around_the_sum(rows)))
    assert values == (Fraction(1, n),) * n


@pytest.mark.parametrize("n", [2, 9, 16, 17, 60])
def test_shapley_values_sum_to_what_everybody_is_worth(n):
    rows = random_updates(n, n)
    rows[-1] = rows[0]
    game = CosineGame.of(around_the_sum(rows))
    together = game.cosine(sum(game.products), sum(map(sum, game.gram)))
    assert sum(shapley_values(game)) == Fraction(together, ONE)


@pytest.mark.parametrize("n", [9, 17])
def test_equal_updates_have_equal_shapley_values(n):
    rows = random_updates(n, 4)
    rows[3] = rows[7] = rows[0]
    values = shapley_values(CosineGame.of(around_the_sum(rows)))
    assert values[0] == values[3] == values[7] != values[1]


@pytest.mark.parametrize("n", [9, 17])
def test_a_copy_shares_what_one_would_add(n):
    rows = random_updates(n, 5)
    alone = shapley_values(CosineGame.of(around(rows, rows[0])))[0]
    copied = shapley_values(CosineGame.of(around([*rows, rows[0]], rows[0])))[0]
    assert copied < 0.9 * alone


@pytest.mark.parametrize("n", [9, 17])
def test_an_update_of_zeros_has_the_shapley_value_zero(n):
    rows = random_updates(n, 6)
    rows[2] = [0] * 40
    assert shapley_values(CosineGame.of(around_the_sum(rows)))[2] == 0


def test_beyond_sixteen_members_their_order_still_changes_nothing():
    rows = random_updates(23, 7)
    order = np.random.default_rng(8).permutation(23)
    found = shapley_values(CosineGame.of(around_the_sum(rows)))
    shuffled = shapley_values(CosineGame.of(around_the_sum([rows[i] for i in order])))
    assert shuffled == tuple(found[i] for i in order)


def test_beyond_sixteen_members_the_orders_depend_on_the_updates():
    rows = random_updates(17, 9)
    changed = [[*row, 0] for row in rows]
    changed[0][-1] = 1
    numerators = np.sum(rows, axis=0).tolist()
    before = shapley_values(CosineGame.of(around(rows, numerators)))
    after = shapley_values(CosineGame.of(around(changed, [*numerators, 0])))
    # One unit in a direction of its own hardly changes the game; other orders change the estimate more.
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > Fraction(1, 10**5)


@pytest.mark.parametrize("seed", range(3))
def test_sampled_shapley_values_are_near_the_exact_ones(seed):
    game = CosineGame.of(around_the_sum(random_updates(12, seed)))
    exact = shapley_values(game)
    sampled = sampled_values(game, 4096 // 12)
    assert max(abs(a - b) for a, b in zip(exact, sampled, strict=True)) < max(exact) / 20


def test_a_blown_up_update_counts_no_more_than_one_of_median_norm():
    rows, numerators = random_updates(9, 10), random_updates(1, 11)[0]
    tenfold, thousandfold = (
        one("shapley", around([*rows, [factor * value for value in rows[0]]], numerators))
        for factor in (10, 1000)
    )
    assert max(abs(a - b) for a, b in zip(tenfold, thousandfold, strict=True)) <= 1


def test_whoever_points_away_from_the_aggregate_has_no_shapley_score():
    found = one("shapley", around([[5, 1], [5, -1], [-5, 1]], [1, 0]))
    assert found[2] == 0
    assert max(found) == FULL_SCORE


def test_shapley_values_do_not_depend_on_the_unit_of_the_lattice():
    game = CosineGame.of(around_the_sum(random_updates(6, 12)))
    unit = 1 << 400
    gram = [[entry * unit for entry in row] for row in game.gram]
    scaled = CosineGame(gram, [product * unit for product in game.products], game.square * unit)
    assert shapley_values(scaled) == shapley_values(game)


def test_two_orthogonal_members_of_unequal_length_have_the_values_computed_by_hand():
    # Bounded to length 1, both count alike: v = 1/sqrt(2), 1/sqrt(2) and 1 for both.
    values = shapley_values(CosineGame.of(around([[1, 0], [0, 9]], [1, 1])))
    assert [float(value) for value in values] == pytest.approx([0.5, 0.5], abs=1e-8)
    # Against the aggregate (1, 0): v = 1, 0 and 1/sqrt(2) for both.
    values = shapley_values(CosineGame.of(around([[1, 0], [0, 9]], [1, 0])))
    assert [float(value) for value in values] == pytest.approx(
        [(1 + 1 / sqrt(2)) / 2, (1 / sqrt(2) - 1) / 2], abs=1e-8
    )


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


@pytest.mark.parametrize("spec", [ScoreSpec(), EVERY_SCORE])
def test_a_score_specification_survives_its_document(spec):
    assert ScoreSpec.from_document(spec.to_document()) == spec
