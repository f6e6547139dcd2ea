"""A cell's identity is its settings, all of them and nothing else, and a cell that cannot be is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.aggregation import PREAGGREGATORS, RULES, Knowledge, PreSpec, RuleSpec, rule_spec
from folkmoot.aggregation.errors import AttackInvalid
from folkmoot.aggregation.rules import RuleParameter, written_rule
from folkmoot.experiments.cells import (
    AttackChoice,
    Cell,
    ImpossibleCell,
    ModelChoice,
    PartitionChoice,
    Training,
    rule_label,
)

SIGN_FLIP = AttackChoice("sign-flip")
BASE = Cell(
    data="digits",
    partition=PartitionChoice("iid"),
    model=ModelChoice("mlp"),
    training=Training(lr=0.1, batch=32, steps=1),
    rule=rule_spec("trimmed-mean", 2),
    attack=SIGN_FLIP,
    members=10,
    malicious=2,
    rounds=100,
    seed=1,
)

OTHER: Final[dict[str, Any]] = {
    "data": "breast-cancer",
    "partition": PartitionChoice("dirichlet", ("alpha", 0.1)),
    "model": ModelChoice("mlp", (("hidden", 32),)),
    "training": Training(lr=0.2, batch=32, steps=1),
    "rule": rule_spec("median", 2),
    "attack": AttackChoice("sign-flip", (("strength", 10.0),)),
    "members": 11,
    "malicious": 1,
    "rounds": 101,
    "seed": 2,
    "evaluate_every": 5,
    "bits": 8,
    "exponent": -11,
    "malicious_data": 0.5,
    "scores": ("influence",),
}
OTHER_TRAINING: Final[dict[str, Any]] = {
    "lr": 0.2,
    "batch": 16,
    "steps": 2,
    "optimizer": "adam",
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "engine": "loop",
    "precision": "bfloat16",
    "device": "cuda",
}


def test_the_identity_of_a_cell_never_changes() -> None:
    # Folders of results are found again by it.
    assert BASE.id == "5e6283b8733e9347"


@pytest.mark.parametrize("setting", [field.name for field in fields(Cell)])
def test_another_setting_is_another_cell(setting: str) -> None:
    assert replace(BASE, **{setting: OTHER[setting]}).id != BASE.id


@pytest.mark.parametrize("setting", [field.name for field in fields(Training) if field.name != "epochs"])
def test_another_setting_of_the_training_is_another_cell(setting: str) -> None:
    other = replace(BASE.training, **{setting: OTHER_TRAINING[setting]})
    assert replace(BASE, training=other).id != BASE.id


def test_who_shares_the_data_is_a_setting() -> None:
    honest = replace(BASE, partition=PartitionChoice("iid", None, "honest"))
    assert honest.id != BASE.id
    assert honest.settings()["partition"] == "iid among=honest"
    with pytest.raises(ImpossibleCell, match=r"partition\.among is 'all', expected members or honest"):
        PartitionChoice("iid", None, "all")


def test_epochs_are_not_steps() -> None:
    assert replace(BASE, training=Training(lr=0.1, batch=32, epochs=1)).id != BASE.id


def test_another_f_of_the_same_rule_is_another_cell() -> None:
    assert replace(BASE, rule=rule_spec("trimmed-mean", 1)).id != BASE.id


def test_numbers_that_are_almost_equal_make_different_cells() -> None:
    shares = [replace(BASE, partition=PartitionChoice("dirichlet", ("alpha", a))) for a in (0.1, 0.10000001)]
    lies = [replace(BASE, attack=AttackChoice("sign-flip", (("strength", s),))) for s in (1.0, 1.0000001)]
    assert len({cell.id for cell in (*shares, *lies)}) == 4


@given(st.floats(1e-300, 1e300))
def test_a_number_in_a_label_is_exact(value: float) -> None:
    assert float(PartitionChoice("dirichlet", ("alpha", value)).label.rpartition("=")[2]) == value


def test_what_the_liars_see_is_a_setting_where_they_look() -> None:
    blind = replace(BASE, attack=replace(SIGN_FLIP, knowledge=Knowledge.BLIND))
    assert blind.id != BASE.id
    assert blind.settings()["attack.knowledge"] == "blind"


@pytest.mark.parametrize("name", ["gaussian", "infinity", "nan", "zero", "label-flip", "backdoor"])
def test_what_the_liars_see_is_no_setting_where_they_do_not_look(name: str) -> None:
    omniscient, blind = (replace(BASE, attack=AttackChoice(name, (), knowledge)) for knowledge in Knowledge)
    assert omniscient.id == blind.id
    assert omniscient.settings()["attack.knowledge"] == "none"


def test_the_settings_say_everything_in_flat_names() -> None:
    assert BASE.settings() == {
        "data": "digits",
        "partition": "iid",
        "model": "mlp",
        "training.lr": 0.1,
        "training.batch": 32,
        "training.steps": 1,
        "training.epochs": 0.0,
        "training.optimizer": "sgd",
        "training.momentum": 0.0,
        "training.weight_decay": 0.0,
        "training.schedule": "constant",
        "training.engine": "auto",
        "training.precision": "float32",
        "training.device": "cpu",
        "rule": "trimmed-mean",
        "attack": "sign-flip",
        "attack.knowledge": "omniscient",
        "federation.members": 10,
        "federation.malicious": 2,
        "federation.malicious_data": 1.0,
        "federation.f": 2,
        "federation.rounds": 100,
        "federation.evaluate_every": 10,
        "lattice.bits": 16,
        "lattice.exponent": -13,
        "scores": "",
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"members": 0, "malicious": 0}, "members is 0, expected 1 to 256"),
        ({"members": 257}, "members is 257, expected 1 to 256"),
        ({"malicious": 5}, "malicious is 5 of 10 members, expected less than half"),
        ({"malicious": -1}, "malicious is -1 of 10 members, expected less than half"),
        ({"malicious": 0}, 'attack sign-flip with malicious = 0; use attack "none"'),
        ({"rule": rule_spec("krum", 4)}, "krum with f = 4 needs 11 members, found 10"),
        ({"rule": rule_spec("bulyan", 2)}, "bulyan with f = 2 needs 11 members, found 10"),
        ({"rule": rule_spec("krum", 2, {}, ["bucketing:s=2"])}, "krum with f = 2 needs 13 members, found 10"),
        ({"rule": rule_spec("centered-clipping", 2, {"tau": 1, "history": 1})}, "history = 1 is not used"),
        ({"rule": rule_spec("monna", 2, {"pivot": 10})}, "rule.params.pivot is beyond the members.*0 to 9"),
        ({"malicious_data": 0.0}, "malicious_data is 0.0, expected more than 0 to 1"),
        ({"malicious_data": 1.5}, "malicious_data is 1.5, expected more than 0 to 1"),
        ({"rounds": 0}, "rounds is 0, expected 1"),
        ({"evaluate_every": 0}, "evaluate_every is 0, expected 1"),
        (
            {"malicious": 1, "attack": AttackChoice("min-max", (), Knowledge.BLIND)},
            "attack min-max needs to know 2 updates; blind liars know 1",
        ),
        ({"attack": AttackChoice("copy", (("victim", 8),))}, "attack.params.victim is 8, expected 0 to 7"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: Mapping[str, Any], complaint: str) -> None:
    with pytest.raises(ImpossibleCell, match=complaint):
        replace(BASE, **changes)


def test_the_least_members_and_the_last_victim_are_allowed() -> None:
    replace(BASE, rule=rule_spec("krum", 2), members=7)
    replace(BASE, attack=AttackChoice("copy", (("victim", 7),)))
    replace(BASE, rule=rule_spec("monna", 2, {"pivot": 9}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": 0}, "either steps or epochs"),
        ({"epochs": 1.0}, "either steps or epochs"),
        ({"steps": -1, "epochs": 1.0}, "training.steps is -1, expected 0"),
        ({"epochs": -1.0}, "training.epochs is -1.0, expected 0"),
        ({"steps": 0, "epochs": float("inf")}, "training.epochs is inf"),
        ({"epochs": float("nan")}, "training.epochs is nan"),
        ({"batch": 0}, "training.batch is 0, expected 1"),
        ({"weight_decay": -0.1}, "training.weight_decay is -0.1, expected 0"),
        ({"weight_decay": float("nan")}, "training.weight_decay is nan, expected 0"),
        ({"lr": 0.0}, "training.lr is 0.0, expected more than 0"),
        ({"lr": float("nan")}, "training.lr is nan, expected more than 0"),
        ({"momentum": 1.0}, "training.momentum is 1.0, expected 0 to less than 1"),
        ({"optimizer": "rmsprop"}, "training.optimizer is 'rmsprop', expected one of sgd, adam"),
        ({"schedule": "linear"}, "training.schedule is 'linear', expected one of constant, cosine, step"),
        ({"precision": "float16"}, "training.precision is 'float16', expected one of float32, bfloat16"),
        ({"engine": "jax"}, "training.engine is 'jax', expected one of auto, vectorised, loop"),
        ({"device": "tpu"}, "training.device is 'tpu', expected one of cpu, cuda"),
    ],
)
def test_training_that_makes_no_sense_is_refused(changes: Mapping[str, Any], complaint: str) -> None:
    with pytest.raises(ImpossibleCell, match=complaint):
        replace(BASE.training, **changes)


def test_an_attack_is_checked_where_it_is_named() -> None:
    with pytest.raises(AttackInvalid, match="no attack 'bribe'; known: sign-flip"):
        AttackChoice("bribe")
    with pytest.raises(AttackInvalid, match="sign-flip has no parameter 'force'; known: strength"):
        AttackChoice("sign-flip", (("force", 1.0),))
    with pytest.raises(ImpossibleCell, match='attack "none" has no parameters'):
        AttackChoice("none", (("strength", 1.0),))
    with pytest.raises(ImpossibleCell, match="attack copy needs knowledge = omniscient"):
        AttackChoice("copy", (), Knowledge.BLIND)


def parameters(known: tuple[RuleParameter, ...]) -> st.SearchStrategy[tuple[tuple[str, int], ...]]:
    """Every required parameter and some of the others, within bounds."""
    values = {p.name: st.integers(p.least, p.most) for p in known}
    needed = {p.name: values[p.name] for p in known if not p.optional}
    optional = {name: value for name, value in values.items() if name not in needed}
    found = st.fixed_dictionaries(needed, optional=optional)
    return found.map(lambda given: tuple(sorted(given.items())))


def specifications(rules: Mapping[str, Any] = RULES) -> st.SearchStrategy[RuleSpec]:
    def rule(name: str) -> st.SearchStrategy[RuleSpec]:
        before = st.sampled_from(sorted(PREAGGREGATORS)).flatmap(
            lambda pre: parameters(PREAGGREGATORS[pre].parameters).map(lambda given: PreSpec(pre, given))
        )
        given = parameters(RULES[name].parameters)
        per_member = st.lists(before.filter(lambda entry: entry.name != "bucketing"), max_size=3).map(tuple)
        pre = per_member if name == "monna" else st.lists(before, max_size=3).map(tuple)
        spec = st.tuples(st.integers(0, 255), given, pre).filter(
            lambda parts: "cap" not in dict(parts[1]) or all(e.name != "bucketing" for e in parts[2])
        )
        return spec.map(lambda parts: RuleSpec(name, *parts))

    return st.sampled_from(sorted(rules)).flatmap(rule)


@given(specifications())
def test_a_rule_as_it_is_written_reads_as_itself(spec: RuleSpec) -> None:
    params, pre = written_rule(spec)
    assert rule_spec(spec.name, spec.f, params, pre) == spec


@given(specifications(), specifications())
def test_two_rules_share_a_label_only_when_they_are_one(one: RuleSpec, other: RuleSpec) -> None:
    same = replace(one, f=0) == replace(other, f=0)
    assert (rule_label(one) == rule_label(other)) == same


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_can_be_labelled_and_written_with_its_least_parameters(name: str) -> None:
    spec = RuleSpec(name, 1, tuple((p.name, p.most) for p in RULES[name].parameters if not p.optional))
    params, pre = written_rule(spec)
    assert rule_spec(name, 1, params, pre) == spec
    assert rule_label(spec).split()[0] == name


def test_a_label_shows_pre_aggregators_and_lengths_in_the_models_unit() -> None:
    spec = rule_spec("centered-clipping", 2, {"tau": 1.5, "steps": 3}, ["clipping:tau=0.25", "nnm"])
    assert rule_label(spec) == "clipping tau=0.25 + nnm + centered-clipping steps=3 tau=1.5"


def test_the_labels_of_choices_are_short() -> None:
    assert PartitionChoice("dirichlet", ("alpha", 1.0)).label == "dirichlet alpha=1"
    assert ModelChoice("mlp", (("hidden", 64),)).label == "mlp hidden=64"
    assert AttackChoice("min-max", (("perturbation", "sign"),)).label == "min-max perturbation=sign"
