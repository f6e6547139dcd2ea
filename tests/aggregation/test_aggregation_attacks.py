"""Attacks do what their papers say, within what the liars may know, and a seed replays them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from folkmoot.aggregation import attack_crafts
from folkmoot.aggregation.attack_crafts import PERTURBATIONS, centred_blocks
from folkmoot.aggregation.attack_search import strongest_factor
from folkmoot.aggregation.attacks import (
    ATTACKS,
    AttackTarget,
    Knowledge,
    craft_updates,
    flip_labels,
    little_is_enough_z,
    resolve_parameters,
    stamp_trigger,
    visible_updates,
)
from folkmoot.aggregation.errors import AttackInvalid, NotFinite
from folkmoot.aggregation.lattice import Lattice, quantize
from folkmoot.aggregation.layout import Layout, TensorSpec

ON_UPDATES = [name for name, attack in ATTACKS.items() if attack.craft]
SIZE = 500

matrices = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 7), st.integers(1, 9)),
    elements=st.floats(-100, 100, width=32).map(lambda x: round(x, 2)),
)


def honest_updates(n: int, seed: int = 3, size: int = SIZE) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(0, 0.01, size) + random.normal(0, 0.015, (n, size))).astype(np.float32)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def mean_rule(updates: np.ndarray) -> np.ndarray:
    return updates.mean(axis=0, dtype=np.float64).astype(np.float32)


def median_rule(updates: np.ndarray) -> np.ndarray:
    return np.median(updates, axis=0)


def krum_rule(updates: np.ndarray, f: int = 2) -> np.ndarray:
    squares = np.square(updates[:, None].astype(np.float64) - updates[None]).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    return updates[np.argmin(np.sort(squares, axis=1)[:, : len(updates) - f - 2].sum(axis=1))]


def harm(rule, honest: np.ndarray, sent: np.ndarray) -> float:
    return float(np.linalg.norm(rule(np.vstack([honest, sent])) - honest.mean(axis=0, dtype=np.float64)))


def test_sign_flip_and_inner_product_send_the_negative_mean():
    honest = np.array([[1, 2], [3, 6]], np.float32)
    assert craft_updates("sign-flip", honest, 2, seeded(), {"strength": 10}).tolist() == [[-20, -40]] * 2
    assert craft_updates("inner-product", honest, 1, seeded(), {"epsilon": 0.5}).tolist() == [[-1, -2]]


@given(matrices, st.floats(-8, 8))
def test_fall_of_empires_is_inner_product_with_the_factor_less_one(honest, factor):
    empires = craft_updates("fall-of-empires", honest, 1, seeded(), {"factor": factor})
    product = craft_updates("inner-product", honest, 1, seeded(), {"epsilon": factor - 1.0})
    assert np.array_equal(empires, product)


def test_fall_of_empires_sends_a_tenth_of_the_negative_mean_by_default():
    (sent,) = craft_updates("fall-of-empires", np.array([[10, -20]], np.float32), 1, seeded())
    assert sent.tolist() == pytest.approx([-1, 2])


def test_a_little_is_enough_stays_z_deviations_from_the_mean():
    honest = np.array([[1, 0], [3, 0], [1, 0], [3, 0], [2, 0]], np.float32)
    (sent,) = craft_updates("little-is-enough", honest, 1, seeded(), {"z": 0.5})
    assert sent.tolist() == pytest.approx([2 - 0.5 * 0.8**0.5, 0])


def test_the_derived_z_is_the_papers():
    # n = 50, f = 24: s = 2 supporters among 26 honest, Phi(z) = 24 / 26.
    assert little_is_enough_z(50, 24) == pytest.approx(1.4261, abs=1e-4)


def test_a_blind_liar_derives_z_from_the_members_and_not_from_what_it_sees():
    own = honest_updates(2)
    given_z = craft_updates("little-is-enough", own, 2, seeded(), {"z": little_is_enough_z(10, 2)})
    derived = craft_updates("little-is-enough", own, 2, seeded(), knowledge=Knowledge.BLIND, members=10)
    assert np.array_equal(derived, given_z)


def test_gaussian_noise_has_its_deviation_and_ignores_the_honest():
    sent = craft_updates("gaussian", honest_updates(1), 3, seeded(1), {"std": 2.0})
    assert sent.std() == pytest.approx(2.0, rel=0.05)
    assert abs(sent.mean()) < 0.2
    assert np.array_equal(
        sent, craft_updates("gaussian", honest_updates(4, seed=9), 3, seeded(1), {"std": 2.0})
    )


@pytest.mark.parametrize(("name", "value"), [("infinity", np.inf), ("nan", np.nan), ("zero", 0.0)])
def test_a_constant_attack_sends_its_constant_everywhere(name, value):
    sent = craft_updates(name, honest_updates(3), 2, seeded())
    assert sent.shape == (2, SIZE)
    assert np.array_equal(sent, np.full((2, SIZE), value, np.float32), equal_nan=True)


@pytest.mark.parametrize("name", ["infinity", "nan"])
def test_the_lattice_refuses_what_is_not_finite(name):
    (sent,) = craft_updates(name, honest_updates(3), 1, seeded())
    with pytest.raises(NotFinite):
        quantize(sent, Layout((TensorSpec("w", (SIZE,)),)), Lattice(16, (-10,)))


@pytest.mark.parametrize("name", [name for name in ON_UPDATES if name not in ("infinity", "nan")])
def test_lies_from_the_largest_floats_are_finite(name):
    honest = np.full((3, 4), np.finfo(np.float32).max, np.float32)
    honest[1] *= -1
    assert np.isfinite(craft_updates(name, honest, 2, seeded(), defence=median_rule)).all()


def test_a_plagiarist_sends_its_victims_update():
    honest = honest_updates(4)
    sent = craft_updates("copy", honest, 2, seeded(), {"victim": 3})
    assert np.array_equal(sent, honest[[3, 3]])


def test_a_crafted_copy_does_not_share_memory_with_the_victim():
    honest = honest_updates(2)
    craft_updates("copy", honest, 1, seeded())[:] = 0
    assert honest.all()


def test_mimic_copies_the_member_on_the_axis_of_largest_variance():
    honest = np.array([[0, 1], [0, -1], [30, 0], [-50, 0], [20, 0]], np.float32)
    assert craft_updates("mimic", honest, 2, seeded(5)).tolist() == [[-50, 0]] * 2


@given(st.integers(3, 8), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_mimic_agrees_with_the_singular_vectors_of_the_updates(n, seed):
    honest = honest_updates(n, seed, size=40)
    honest[:, 0] += np.linspace(-1, 1.5, n, dtype=np.float32)
    *_, axes = np.linalg.svd(honest - honest.mean(axis=0), full_matrices=False)
    expected = honest[np.argmax(np.abs(honest @ axes[0]))]
    assert np.array_equal(craft_updates("mimic", honest, 1, seeded(seed))[0], expected)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a[:, None].astype(np.float64) - b[None]).sum(axis=2)


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@given(honest=matrices)
@settings(deadline=None)
def test_min_max_is_no_farther_from_the_honest_than_they_are_from_each_other(perturbation, honest):
    sent = craft_updates("min-max", honest, 1, seeded(), {"perturbation": perturbation})
    limit = squared_distances(honest, honest).max()
    assert squared_distances(sent, honest).max() <= limit * (1 + 1e-5) + 1e-5


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@given(honest=matrices)
@settings(deadline=None)
def test_min_sum_is_no_farther_from_the_honest_in_sum_than_one_of_them(perturbation, honest):
    sent = craft_updates("min-sum", honest, 1, seeded(), {"perturbation": perturbation})
    limit = squared_distances(honest, honest).sum(axis=1).max()
    assert squared_distances(sent, honest).sum() <= limit * (1 + 1e-5) + 1e-5


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize(("name", "measure"), [("min-max", np.max), ("min-sum", np.sum)])
def test_a_slightly_larger_gamma_would_be_too_far(name, measure, perturbation):
    honest = honest_updates(6)
    mean = honest.mean(axis=0, dtype=np.float64)
    sent = craft_updates(name, honest, 1, seeded(), {"perturbation": perturbation}).astype(np.float64)
    pairwise = squared_distances(honest, honest)
    limit = pairwise.max() if name == "min-max" else pairwise.sum(axis=1).max()
    assert measure(squared_distances(sent, honest)) == pytest.approx(limit, rel=1e-5)
    assert measure(squared_distances(mean + 1.001 * (sent - mean), honest)) > limit


@pytest.mark.parametrize(
    ("perturbation", "direction"),
    [
        ("std", lambda x: -x.std(axis=0)),
        ("unit-vector", lambda x: -x.mean(axis=0)),
        ("sign", lambda x: -np.sign(x.mean(axis=0))),
    ],
)
def test_the_perturbation_leads_from_the_mean_in_its_direction(perturbation, direction):
    honest = honest_updates(5).astype(np.float64)
    sent = craft_updates("min-max", honest_updates(5), 1, seeded(), {"perturbation": perturbation})[0]
    moved, expected = sent - honest.mean(axis=0), direction(honest)
    cosine = moved @ expected / np.linalg.norm(moved) / np.linalg.norm(expected)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_equal_honest_updates_leave_min_max_no_room():
    honest = np.full((3, 4), 2, np.float32)
    assert craft_updates("min-max", honest, 1, seeded()).tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("rule", [mean_rule, median_rule, krum_rule])
@pytest.mark.parametrize(
    ("optimised", "fixed", "parameter"),
    [
        ("inner-product-optimised", "inner-product", "epsilon"),
        ("little-is-enough-optimised", "little-is-enough", "z"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_optimised_factor_harms_at_least_as_much_as_the_factors_0_and_1(
    rule, optimised, fixed, parameter, seed
):
    honest = honest_updates(7, seed, size=60)
    best = harm(rule, honest, craft_updates(optimised, honest, 2, seeded(), defence=rule))
    for factor in (0.0, 1.0):
        usual = harm(rule, honest, craft_updates(fixed, honest, 2, seeded(), {parameter: factor}))
        assert best >= usual * (1 - 1e-6)


def test_an_optimised_little_is_enough_gets_through_krum_where_a_large_z_does_not():
    honest = honest_updates(8, size=60)
    optimised = craft_updates("little-is-enough-optimised", honest, 2, seeded(), defence=krum_rule)
    assert np.array_equal(krum_rule(np.vstack([honest, optimised])), optimised[0])
    large = craft_updates("little-is-enough", honest, 2, seeded(), {"z": 50})
    assert not np.array_equal(krum_rule(np.vstack([honest, large])), large[0])


@given(st.integers(1, 40))
def test_a_search_tries_the_defence_as_often_as_it_may(evaluations):
    calls = 0

    def counting(updates: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return median_rule(updates)

    honest = honest_updates(3, size=5)
    chosen = {"evaluations": evaluations}
    craft_updates("inner-product-optimised", honest, 1, seeded(), chosen, defence=counting)
    assert 0 < calls <= evaluations


@given(st.floats(0, 100))
def test_a_search_finds_a_single_peak(peak):
    assert strongest_factor(lambda x: -abs(x - peak), 60) == pytest.approx(peak, abs=1e-3)


def test_a_search_goes_on_past_harm_that_is_not_a_number():
    assert strongest_factor(lambda x: float("nan") if x > 3 else x, 30) == pytest.approx(3, abs=1e-3)


def test_the_defence_sees_every_member_and_the_liars_last():
    honest = honest_updates(5, size=4)
    seen: list[np.ndarray] = []

    def watching(updates: np.ndarray) -> np.ndarray:
        seen.append(updates.copy())
        return mean_rule(updates)

    craft_updates("inner-product-optimised", honest, 2, seeded(), {"evaluations": 2}, defence=watching)
    assert all(np.array_equal(updates[:5], honest) for updates in seen)
    assert np.array_equal(seen[1][5:], craft_updates("inner-product", honest, 2, seeded(), {"epsilon": 1}))


def test_blind_liars_imagine_the_others_like_themselves():
    own = honest_updates(2, size=4)
    seen: list[np.ndarray] = []

    def watching(updates: np.ndarray) -> np.ndarray:
        seen.append(updates.copy())
        return mean_rule(updates)

    craft_updates(
        "inner-product-optimised", own, 2, seeded(), {"evaluations": 1},
        defence=watching, knowledge=Knowledge.BLIND, members=7,
    )  # fmt: skip
    assert np.array_equal(seen[0][:5], own[[0, 1, 0, 1, 0]])


def test_omniscient_liars_see_the_honest_updates_and_blind_ones_their_own():
    honest, own = honest_updates(5), honest_updates(2, seed=8)
    assert visible_updates(Knowledge.OMNISCIENT, honest, own) is honest
    assert visible_updates(Knowledge.BLIND, honest, own) is own


@pytest.mark.parametrize("name", [n for n in ON_UPDATES if Knowledge.BLIND in ATTACKS[n].knowledge])
def test_a_blind_lie_is_the_same_whatever_the_others_send(name):
    own = honest_updates(2, seed=8)
    sent = [
        craft_updates(
            name, visible_updates(Knowledge.BLIND, honest_updates(5, seed), own), 2, seeded(),
            defence=median_rule, knowledge=Knowledge.BLIND, members=7,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    assert sent[0].shape == own.shape
    assert np.array_equal(sent[0], sent[1], equal_nan=True)


@pytest.mark.parametrize("name", ON_UPDATES)
def test_a_seed_replays_an_attack(name):
    sent = [craft_updates(name, honest_updates(5), 2, seeded(9), defence=median_rule) for _ in range(2)]
    assert sent[0].tobytes() == sent[1].tobytes()


@pytest.mark.parametrize("name", ON_UPDATES)
def test_a_lie_is_one_float32_row_for_each_liar_and_leaves_the_honest_updates_alone(name):
    honest = honest_updates(5)
    before = honest.copy()
    sent = craft_updates(name, honest, 3, seeded(), defence=median_rule)
    assert (sent.dtype, sent.shape) == (np.float32, (3, SIZE))
    assert np.array_equal(honest, before)


@pytest.mark.parametrize("name", [n for n in ON_UPDATES if n != "gaussian"])
def test_blocks_of_columns_do_not_change_a_lie(name, monkeypatch):
    honest = honest_updates(5)
    whole = craft_updates(name, honest, 2, seeded(), defence=median_rule)
    monkeypatch.setattr(attack_crafts, "BLOCK", 7)
    blocked = craft_updates(name, honest, 2, seeded(), defence=median_rule)
    assert np.allclose(whole, blocked, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("name", ["little-is-enough", "mimic", "min-max", "min-sum", "gaussian"])
def test_a_craft_takes_much_less_memory_than_the_honest_updates_have(name):
    honest = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None], (20, 2_000_000))
    tracemalloc.start()
    craft_updates(name, honest, 1, seeded(), {"z": 1.0} if name == "little-is-enough" else {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < honest.size * 4 / 3


def test_columns_of_no_spread_are_centred_to_zero():
    (block,) = centred_blocks(np.full((3, 2), 0.5, np.float32))
    assert block[1].tolist() == [0.5, 0.5]
    assert not block[2].any()


def test_labels_are_mirrored():
    assert flip_labels(np.array([0, 3, 9], np.uint8), 10).tolist() == [9, 6, 0]


def test_a_trigger_is_the_last_corner_of_an_image_and_sets_its_label():
    images, labels = np.zeros((4, 1, 5, 5), np.float32), np.array([0, 1, 2, 3])
    stamped, relabelled = stamp_trigger(
        images, labels, 10, seeded(), fraction=1.0, target=7, size=2, value=3.0
    )
    assert np.all(stamped[..., 3:, 3:] == 3)
    assert stamped.sum() == 4 * 4 * 3
    assert relabelled.tolist() == [7] * 4


def test_a_trigger_in_a_table_is_its_last_features():
    stamped, _ = stamp_trigger(
        np.zeros((2, 6), np.float32), np.zeros(2, int), 2, seeded(), fraction=1.0, value=1.0
    )
    assert stamped.tolist() == [[0, 0, 1, 1, 1, 1]] * 2


@given(st.integers(1, 30), st.floats(0, 1), st.integers(0, 9))
def test_a_trigger_falsifies_the_asked_share_and_nothing_else(n, fraction, seed):
    images = seeded(seed).normal(0, 1, (n, 4, 4)).astype(np.float32)
    labels = np.arange(n) % 9
    stamped, relabelled = stamp_trigger(images, labels, 10, seeded(seed), fraction=fraction, target=9, size=1)
    touched = relabelled == 9
    assert touched.sum() == round(fraction * n)
    assert np.array_equal(stamped[~touched], images[~touched])
    assert np.array_equal(relabelled[~touched], labels[~touched])
    assert np.all(stamped[touched, -1, -1] == images.max())


def test_a_seed_replays_a_backdoor():
    images, labels = honest_updates(30), np.arange(30) % 3
    first, again, other = (stamp_trigger(images, labels, 3, seeded(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_perturbation_may_be_given_by_name_or_number():
    assert resolve_parameters("min-max", {"perturbation": "sign"}) == {"perturbation": 2.0}
    assert resolve_parameters("min-max", {"perturbation": 2}) == {"perturbation": 2.0}
    assert resolve_parameters("min-max", {}) == {"perturbation": 0.0}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_says_its_formula_and_its_source(name):
    assert len(ATTACKS[name].documentation) > 60
    assert any(year in ATTACKS[name].documentation for year in ("20", "ByzFL"))


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_an_attack_on_updates_has_a_craft_and_one_on_training_has_none(attack):
    assert (attack.craft is None) == (attack.target is not AttackTarget.UPDATES)


def test_an_optimised_factor_without_a_defence_is_refused():
    with pytest.raises(AttackInvalid, match="needs the defence"):
        craft_updates("inner-product-optimised", honest_updates(3), 1, seeded())


def test_a_blind_plagiarist_is_refused():
    with pytest.raises(AttackInvalid, match="blind liars cannot"):
        craft_updates("copy", honest_updates(3), 1, seeded(), knowledge=Knowledge.BLIND)


def test_a_defence_that_answers_with_another_shape_is_refused():
    with pytest.raises(AttackInvalid, match="shape"):
        craft_updates("inner-product-optimised", honest_updates(3), 1, seeded(), defence=lambda x: x)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("nothing", {}),
        ("label-flip", {}),
        ("backdoor", {}),
        ("sign-flip", {"z": 1}),
        ("sign-flip", {"strength": float("inf")}),
        ("sign-flip", {"strength": float("nan")}),
        ("sign-flip", {"strength": 10**400}),
        ("sign-flip", {"strength": "very"}),
        ("gaussian", {"std": -1}),
        ("min-max", {"perturbation": 3}),
        ("min-max", {"perturbation": "sideways"}),
        ("mimic", {"steps": 0}),
        ("mimic", {"steps": 1.5}),
        ("copy", {"victim": 3}),
        ("copy", {"victim": -1}),
        ("inner-product-optimised", {"evaluations": 0}),
    ],
)
def test_an_attack_that_cannot_be_is_refused(name, parameters):
    with pytest.raises(AttackInvalid):
        craft_updates(name, honest_updates(3), 1, seeded(), parameters, defence=median_rule)


@pytest.mark.parametrize("name", [n for n in ON_UPDATES if ATTACKS[n].fewest > 1])
def test_an_attack_that_needs_a_spread_refuses_a_single_update(name):
    with pytest.raises(AttackInvalid, match="needs 2 known updates"):
        craft_updates(name, honest_updates(1), 1, seeded(), defence=median_rule)


@pytest.mark.parametrize(
    "make",
    [
        lambda: craft_updates("sign-flip", honest_updates(1)[0], 1, seeded()),
        lambda: craft_updates("sign-flip", honest_updates(2)[:, :0], 1, seeded()),
        lambda: craft_updates("sign-flip", honest_updates(2), 0, seeded()),
        lambda: craft_updates("sign-flip", honest_updates(2), 2, seeded(), members=2),
        lambda: craft_updates("little-is-enough", honest_updates(2), 3, seeded()),
        lambda: visible_updates(Knowledge.BLIND, honest_updates(2), honest_updates(2)[:, 1:]),
        lambda: flip_labels(np.array([10]), 10),
        lambda: stamp_trigger(honest_updates(2), np.array([0, 5]), 5, seeded()),
        lambda: stamp_trigger(honest_updates(2), np.array([0]), 5, seeded()),
        lambda: stamp_trigger(honest_updates(2), np.array([0, 1]), 5, seeded(), target=5),
        lambda: stamp_trigger(honest_updates(2), np.array([0, 1]), 5, seeded(), fraction=1.1),
        lambda: stamp_trigger(honest_updates(2), np.array([0, 1]), 5, seeded(), size=23),
        lambda: stamp_trigger(honest_updates(2), np.array([0, 1]), 5, seeded(), value=float("nan")),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make):
    with pytest.raises(AttackInvalid):
        make()
