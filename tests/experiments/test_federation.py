"""A federation in memory: honest members learn, liars lie as their attack says, robust rules survive them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.aggregation import ATTACKS, FULL_SCORE, RULES, SCORES, AttackTarget, Knowledge, flip_labels
from folkmoot.experiments.cells import Cell
from folkmoot.experiments.federation import (
    Federation,
    _Scores,
    area_under_curve,
    is_vectorised,
    lying_models,
    member_data,
    run_cell,
)
from folkmoot.experiments.members import HonestMember, LyingMember
from folkmoot.experiments.results import CellResult, Evaluation
from folkmoot.node.datasets import Dataset

MakeCell = Callable[..., Cell]
HONEST, LIARS = slice(None, 9), slice(9, None)
"""Rows of the eleven members of a cell."""

LONG = {"model": {"name": "mlp"}, "training": {"batch": 32, "momentum": 0.9}, "federation": {"rounds": 100}}
OPTIMISED = [name for name, attack in ATTACKS.items() if attack.needs_defence]
PARAMS = {"tau": 1, "cap": 50}


def rule(name: str) -> dict[str, object]:
    """A rule with the parameters that it cannot be without."""
    needed = [p.name for p in RULES[name].parameters if not p.optional]
    return {"name": name, "params": {parameter: PARAMS[parameter] for parameter in needed}}


def test_the_same_cell_gives_the_same_result(cell: MakeCell, digits: Dataset) -> None:
    chosen = cell(
        model={"name": "mlp"},
        rule={"name": "krum", "pre": ["bucketing:s=1", "nnm"]},
        attack={"name": "gaussian"},
        scores=["shapley"],
        federation={"rounds": 5, "malicious_data": 0.5},
    )
    assert run_cell(chosen, digits) == run_cell(chosen, digits)


def test_another_seed_gives_another_model(cell: MakeCell, digits: Dataset) -> None:
    one, other = (run_cell(cell(seeds=seed), digits) for seed in (1, 2))
    assert {e.model for e in one.evaluations}.isdisjoint(e.model for e in other.evaluations)


def test_honest_members_learn_to_read_digits(cell: MakeCell, digits: Dataset) -> None:
    found = run_cell(cell(**LONG), digits)
    assert found.final.accuracy > 0.9
    assert found.evaluations[0].accuracy < 0.3
    assert (found.excluded, found.skipped) == (0, 0)


@pytest.mark.parametrize(("name", "survives"), [("mean", False), ("trimmed-mean", True)])
def test_two_sign_flippers_break_the_mean_and_not_the_trimmed_mean(
    cell: MakeCell, digits: Dataset, name: str, survives: bool
) -> None:
    attack = {"name": "sign-flip", "params": {"strength": 10}}
    accuracy = run_cell(cell(**LONG, rule={"name": name}, attack=attack), digits).final.accuracy
    assert accuracy > 0.9 if survives else accuracy < 0.3


@pytest.mark.parametrize("name", ["infinity", "nan"])
def test_updates_that_are_not_finite_are_left_out_and_counted(
    cell: MakeCell, digits: Dataset, name: str
) -> None:
    found = run_cell(cell(**LONG, attack={"name": name}), digits)
    assert (found.excluded, found.skipped) == (2 * 100, 0)
    assert found.final.accuracy > 0.9


def test_a_rule_that_needs_the_liars_cannot_aggregate_without_them(cell: MakeCell, digits: Dataset) -> None:
    found = run_cell(cell(rule={"name": "bulyan"}, attack={"name": "nan"}), digits)
    assert found.skipped == 2
    assert len({evaluation.model for evaluation in found.evaluations}) == 1


def test_evaluations_come_at_the_start_every_so_often_and_at_the_end(cell: MakeCell, digits: Dataset) -> None:
    heard: list[Evaluation] = []
    found = run_cell(cell(federation={"rounds": 7, "evaluate_every": 3}), digits, heard.append)
    assert [evaluation.round for evaluation in found.evaluations] == [0, 3, 6, 7]
    assert tuple(heard) == found.evaluations


def test_a_model_is_measured_on_the_test_set(cell: MakeCell, digits: Dataset) -> None:
    federation = Federation(cell(), digits)
    matrix, bias = federation.layout.unflatten(federation.weights).values()
    scores = digits.test.features @ matrix.T + bias
    exact = scores - scores.max(axis=1, keepdims=True)
    probabilities = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    measured = federation.evaluate(0)
    assert measured.accuracy == np.mean(scores.argmax(axis=1) == digits.test.labels)
    true = probabilities[np.arange(len(digits.test.labels)), digits.test.labels]
    assert measured.loss == pytest.approx(-np.log(true).mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["label-flip", "backdoor"])
def test_an_attack_on_training_data_falsifies_that_of_the_liars_alone(
    cell: MakeCell, digits: Dataset, name: str
) -> None:
    honest, attacked = member_data(cell(), digits), member_data(cell(attack={"name": name}), digits)
    same = [
        np.array_equal(a.labels, b.labels) and np.array_equal(a.features, b.features)
        for a, b in zip(honest, attacked, strict=True)
    ]
    assert same == [True] * 9 + [False] * 2


def test_label_flippers_mirror_their_labels_and_keep_their_images(cell: MakeCell, digits: Dataset) -> None:
    honest = member_data(cell(), digits)[LIARS]
    flipped = member_data(cell(attack={"name": "label-flip"}), digits)[LIARS]
    for true, false in zip(honest, flipped, strict=True):
        assert np.array_equal(false.labels, flip_labels(true.labels, 10))
        assert np.array_equal(false.features, true.features)


def test_a_backdoor_stamps_the_asked_fraction_each_liar_its_own(cell: MakeCell, digits: Dataset) -> None:
    attack = {"name": "backdoor", "params": {"fraction": 0.5, "target": 3, "size": 2}}
    honest = member_data(cell(), digits)[LIARS]
    stamped = member_data(cell(attack=attack), digits)[LIARS]
    picked = []
    for true, false in zip(honest, stamped, strict=True):
        changed = np.flatnonzero((false.features != true.features).any(axis=1))
        assert len(changed) == pytest.approx(0.5 * len(true.labels), abs=2)
        assert set(false.labels[changed]) == {3}
        picked.append(tuple(changed))
    assert picked[0] != picked[1]


def test_label_flippers_train_as_everybody_does(cell: MakeCell, digits: Dataset) -> None:
    honest = Federation(cell(), digits).updates(0)
    attacked = Federation(cell(attack={"name": "label-flip"}), digits).updates(0)
    assert np.array_equal(attacked[HONEST], honest[HONEST])
    assert np.isfinite(attacked).all()
    assert not np.allclose(attacked[LIARS], honest[LIARS])


@pytest.mark.parametrize(("knowledge", "known"), [("omniscient", HONEST), ("blind", LIARS)])
def test_liars_lie_from_the_updates_that_they_may_know(
    cell: MakeCell, digits: Dataset, knowledge: str, known: slice
) -> None:
    everybody = Federation(cell(), digits).updates(0)
    attack = {"name": "sign-flip", "params": {"strength": 2}, "knowledge": knowledge}
    sent = Federation(cell(attack=attack), digits).updates(0)
    assert np.array_equal(sent[HONEST], everybody[HONEST])
    assert np.allclose(sent[LIARS], -2 * everybody[known].mean(axis=0), atol=1e-6)


def test_blind_and_omniscient_liars_lead_to_different_models(cell: MakeCell, digits: Dataset) -> None:
    one, other = (
        run_cell(cell(attack={"name": "little-is-enough", "knowledge": knowledge.value}), digits)
        for knowledge in Knowledge
    )
    assert one.final.model != other.final.model


def test_a_plagiarist_sends_the_update_of_its_victim(cell: MakeCell, digits: Dataset) -> None:
    sent = Federation(cell(attack={"name": "copy", "params": {"victim": 3}}), digits).updates(0)
    assert np.allclose(sent[LIARS], sent[3], atol=1e-7)


def test_the_model_that_a_liar_pretends_to_have_is_what_it_sends(cell: MakeCell, digits: Dataset) -> None:
    federation = Federation(cell(attack={"name": "gaussian", "params": {"std": 1e38}}), digits)
    sent = federation.updates(0)
    assert np.isfinite(federation.pretended).all()
    with np.errstate(over="ignore"):
        assert np.array_equal(sent[LIARS], federation.pretended - federation.weights)


def test_a_lie_goes_no_further_than_a_model_can_show_unless_it_is_not_finite() -> None:
    largest = np.finfo(np.float32).max
    base = np.array([1e38, -1e38, 1e38, 0, 0, 1], np.float32)
    lies = np.array([[largest, -largest, -largest, np.inf, np.nan, 2]], np.float32)
    (found,) = lying_models(base, lies, np.empty_like(lies))
    assert found[:2].tolist() == [largest, -largest]
    assert found[3] == np.inf
    assert np.isnan(found[4])
    assert found[5] == 3


@pytest.mark.parametrize("engine", ["vectorised", "loop"])
@pytest.mark.parametrize(
    "name", ["none", "sign-flip", "min-max", "inner-product-optimised", "nan", "backdoor"]
)
def test_training_that_diverges_ends_in_a_result(
    cell: MakeCell, digits: Dataset, engine: str, name: str
) -> None:
    training = {"lr": 1e5, "steps": 3, "weight_decay": 10, "engine": engine}
    chosen = cell(model={"name": "mlp"}, training=training, federation={"rounds": 30}, attack={"name": name})
    found = run_cell(chosen, digits)
    assert found.excluded + found.skipped > 0
    assert found.final.accuracy < 0.3


def weights_after(cell: Cell, dataset: Dataset, updates: np.ndarray) -> np.ndarray:
    """What one round adds to the model."""
    federation = Federation(cell, dataset)
    return federation.conclude(updates, 0).weights - Federation(cell, dataset).weights


def test_a_weighted_rule_counts_the_examples_that_members_claim(cell: MakeCell, digits: Dataset) -> None:
    skewed = {"kind": "dirichlet", "alpha": 0.1}
    weighted = cell(partition=skewed, rule={"name": "weighted-mean", "params": {"cap": 100}})
    updates = Federation(weighted, digits).updates(0).copy()
    claims = [min(len(split.labels), 100) for split in member_data(weighted, digits)]
    expected = np.average(updates, axis=0, weights=claims)
    assert len(set(claims)) > 2
    assert np.allclose(weights_after(weighted, digits, updates), expected, atol=1e-4)
    assert not np.allclose(updates.mean(axis=0), expected, atol=1e-3)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 1.0])
def test_liars_keep_a_fraction_of_their_data_and_the_honest_all(
    cell: MakeCell, digits: Dataset, fraction: float
) -> None:
    whole = member_data(cell(), digits)
    kept = member_data(cell(federation={"malicious_data": fraction}), digits)
    expected = [len(s.labels) for s in whole[HONEST]] + [
        max(1, round(fraction * len(s.labels))) for s in whole[LIARS]
    ]
    assert [len(split.labels) for split in kept] == expected


def test_data_shared_among_the_honest_leaves_them_all_of_it(cell: MakeCell, digits: Dataset) -> None:
    shared = {"kind": "shards", "shards": 1, "among": "honest"}
    data = member_data(cell(partition=shared), digits)
    honest = [row.tobytes() for split in data[HONEST] for row in split.features]
    assert sorted(honest) == sorted(row.tobytes() for row in digits.train.features)
    assert all(len(np.unique(split.labels)) <= 3 for split in data[HONEST])
    for liar in data[LIARS]:
        assert len(liar.labels) == len(honest) // 9
        assert len(np.unique(liar.labels)) == 10
    assert not np.array_equal(data[-1].features, data[-2].features)


def test_liars_keep_some_of_their_own_examples(cell: MakeCell, digits: Dataset) -> None:
    whole = member_data(cell(), digits)[10]
    kept = member_data(cell(federation={"malicious_data": 0.3}), digits)[10]
    rows = {row.tobytes() for row in whole.features}
    assert {row.tobytes() for row in kept.features} <= rows


def scored(cell: MakeCell, digits: Dataset, **changes: object) -> CellResult:
    names = ["similarity", "influence", "norm", "krum", "shapley"]
    return run_cell(cell(scores=names, rule={"name": "median"}, **changes), digits)


def test_every_member_has_every_score_from_0_to_1(cell: MakeCell, digits: Dataset) -> None:
    found = scored(cell, digits, attack={"name": "sign-flip"})
    assert set(found.scores) == {"similarity", "influence", "norm", "krum", "shapley"}
    for values in found.scores.values():
        assert len(values) == 11
        assert all(0 <= value <= 1 for value in values)
        assert max(values) > 0


def test_sign_flippers_are_told_from_honest_members(cell: MakeCell, digits: Dataset) -> None:
    found = scored(cell, digits, attack={"name": "sign-flip"})
    assert set(found.auc) == set(found.scores)
    assert found.auc["influence"] == found.auc["similarity"] == 1.0


def test_without_liars_there_is_nobody_to_be_told_apart(cell: MakeCell, digits: Dataset) -> None:
    assert scored(cell, digits).auc == {}
    assert scored(cell, digits, federation={"malicious": 0, "f": 2}).auc == {}


def test_members_with_little_data_are_told_apart_though_they_are_honest(
    cell: MakeCell, digits: Dataset
) -> None:
    assert scored(cell, digits, federation={"malicious_data": 0.01}).auc.keys()


def test_a_member_that_no_round_included_has_no_score(cell: MakeCell, digits: Dataset) -> None:
    found = scored(cell, digits, attack={"name": "nan"})
    assert all(values[LIARS] == (0.0, 0.0) for values in found.scores.values())
    assert min(found.scores["norm"][HONEST]) > 0


def test_a_members_score_is_the_mean_over_the_rounds_that_included_it(
    cell: MakeCell, digits: Dataset
) -> None:
    chosen = cell(scores=["norm"])
    federation, scores = Federation(chosen, digits), _Scores(chosen)
    found = []
    for number in range(2):
        updates = federation.updates(number)
        updates[0] *= (0.5, np.nan)[number]
        applied = federation.conclude(updates, number)
        assert applied.aggregate is not None
        scores.add(applied)
        found.append([value / FULL_SCORE for value in SCORES["norm"](applied.aggregate)])
    means = scores.means()["norm"]
    assert means[0] == found[0][0] > 0
    assert means[1] == pytest.approx((found[0][1] + found[1][0]) / 2)


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    assert area_under_curve([3, 4], [1, 2]) == 1
    assert area_under_curve([1, 2], [3, 4]) == 0
    assert area_under_curve([1, 1], [1]) == 0.5
    assert area_under_curve([0.9, 0.5, 0.1], [0.5, 0.3]) == (1 + 1 + 0.5 + 1 + 0 + 0) / 6


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_the_area_of_one_side_is_the_rest_of_the_other(higher: list[int], lower: list[int]) -> None:
    assert area_under_curve(higher, lower) == pytest.approx(1 - area_under_curve(lower, higher))


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("attack", OPTIMISED)
def test_an_optimised_attack_runs_against_every_rule(
    cell: MakeCell, digits: Dataset, attack: str, name: str
) -> None:
    chosen = cell(rule=rule(name), attack={"name": attack, "params": {"evaluations": 4}})
    found = run_cell(chosen, digits)
    assert found.skipped == found.excluded == 0


@pytest.mark.parametrize("knowledge", Knowledge)
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_runs_for_two_rounds(
    cell: MakeCell, digits: Dataset, name: str, knowledge: Knowledge
) -> None:
    if knowledge not in ATTACKS[name].knowledge:
        knowledge = Knowledge.OMNISCIENT
    attack = {"name": name, "knowledge": knowledge.value}
    found = run_cell(cell(rule={"name": "median"}, attack=attack), digits)
    assert found.excluded == (4 if name in ("infinity", "nan") else 0)
    assert found.skipped == 0


@pytest.mark.parametrize(
    "attack",
    [
        {"name": "none"},
        {"name": "label-flip"},
        {"name": "little-is-enough"},
        {"name": "min-max", "knowledge": "blind"},
    ],
    ids=lambda attack: attack["name"],
)
def test_members_that_train_apart_send_what_they_send_together(
    cell: MakeCell, digits: Dataset, attack: dict[str, str]
) -> None:
    chosen = cell(model={"name": "mlp"}, training={"engine": "loop", "momentum": 0.9}, attack=attack)
    together = Federation(chosen, digits)
    falsifies = chosen.attack.target is AttackTarget.UPDATES
    apart = [
        (LyingMember if falsifies and index >= 9 else HonestMember)(chosen, digits, index)
        for index in range(chosen.members)
    ]
    for number in range(2):
        base = together.weights
        tensors = list(together.layout.unflatten(base).values())
        trained = [member.fit(tensors, {"round": number})[0] for member in apart]
        alone = np.stack([np.concatenate([t.reshape(-1) for t in tensors]) for tensors in trained]) - base
        updates = together.updates(number)
        assert np.array_equal(alone, updates)
        together.conclude(updates, number)


@pytest.mark.parametrize(
    ("model", "engine", "vectorised"),
    [
        ("mlp", "auto", True),
        ("small-cnn", "auto", False),
        ("mlp", "loop", False),
        ("small-cnn", "vectorised", True),
    ],
)
def test_the_engine_is_the_one_asked_for_or_the_faster_one(
    cell: MakeCell, model: str, engine: str, vectorised: bool
) -> None:
    chosen = cell(data={"set": "fashion-mnist"}, model={"name": model}, training={"engine": engine})
    assert is_vectorised(chosen) == vectorised


def test_a_cell_keeps_the_settings_that_it_came_from(cell: MakeCell, digits: Dataset) -> None:
    chosen = replace(cell(), rounds=1)
    found = run_cell(chosen, digits)
    assert (found.id, found.settings) == (chosen.id, chosen.settings())
