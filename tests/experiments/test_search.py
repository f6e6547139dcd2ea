"""A search judges each rule at its best setting, is repeatable, and runs nothing twice."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from folkmoot.experiments.cells import Cell, ImpossibleCell
from folkmoot.experiments.grid_run import run_grid
from folkmoot.experiments.results import CellResult, Evaluation
from folkmoot.experiments.search import (
    Best,
    Trial,
    objective_of,
    read_search,
    run_search,
    trial_count,
)
from folkmoot.experiments.specification import Grid, grid_of

Document = Callable[..., dict[str, Any]]
LR = {"training.lr": {"low": 0.01, "high": 1.0, "log": True}}


def result(cell: Cell, accuracy: float) -> CellResult:
    return CellResult(cell.id, cell.settings(), (Evaluation(1, accuracy, 1.0, ""),), {}, {}, 0, 0)


def best_at(rate: float) -> Callable[[Grid], list[CellResult]]:
    """Made-up results: the nearer the learning rate, the better; a mean that is attacked is worth nothing."""

    def accuracy(cell: Cell) -> float:
        lost = cell.rule.name == "mean" and cell.attack.name != "none"
        return 0.0 if lost else 1 / (1 + abs(cell.training.lr - rate))

    return lambda grid: [result(cell, accuracy(cell)) for cell in grid.cells]


def asked(document: Document, space: Mapping[str, object], **changes: Any) -> list[Best]:
    """The findings for made-up results."""
    keys = ("objective", "sampler", "trials", "seed")
    search = {"space": space, **{key: changes.pop(key) for key in keys if key in changes}}
    return run_search(read_search({**document(**changes), "search": search}), best_at(0.3))


def values(best: Best) -> list[dict[str, object]]:
    return [dict(trial.values) for trial in best.trials]


@pytest.fixture
def results(document: Document) -> list[CellResult]:
    """Two seeds each: honest 0.9, sign-flip 0.5, and gaussian 0.3 in the mean though once 0.1."""
    cells = grid_of(document(attack={"name": ["none", "sign-flip", "gaussian"]}, seeds=[1, 2])).cells
    return [
        result(cell, accuracy) for cell, accuracy in zip(cells, (0.8, 1.0, 0.4, 0.6, 0.1, 0.5), strict=True)
    ]


def test_the_worst_is_the_attack_with_the_lowest_mean_over_seeds(results: list[CellResult]) -> None:
    assert objective_of("worst", results) == pytest.approx(0.3)


def test_the_honest_objective_looks_at_honest_cells_alone(results: list[CellResult]) -> None:
    assert objective_of("honest", results) == pytest.approx(0.9)


def test_the_honest_objective_needs_honest_cells(results: list[CellResult]) -> None:
    with pytest.raises(ImpossibleCell, match='objective "honest" needs attack "none" in the grid'):
        objective_of("honest", results[2:])


def test_the_worst_is_over_all_other_settings_too(document: Document) -> None:
    cells = grid_of(document(partition=[{"kind": "iid"}, {"kind": "dirichlet", "alpha": 1}])).cells
    assert objective_of("worst", [result(cells[0], 0.7), result(cells[1], 0.4)]) == 0.4


def test_rules_are_ranked_by_their_best_trial(document: Document) -> None:
    attack = {"name": ["none", "sign-flip"]}
    found = asked(document, LR, rule={"name": ["mean", "median"]}, attack=attack, sampler="random", trials=4)
    assert [best.rule for best in found] == ["median", "mean"]
    assert found[0].best.accuracy == max(trial.accuracy for trial in found[0].trials)
    assert found[1].best.accuracy == 0


def test_of_equal_trials_the_first_is_the_best() -> None:
    trials = (Trial({"a": 1}, 0.5), Trial({"a": 2}, 0.9), Trial({"a": 3}, 0.9))
    assert Best("mean", trials).best.values == {"a": 2}


def test_the_grid_sampler_tries_every_combination_once(document: Document) -> None:
    space = {"training.lr": [0.1, 0.3, 0.5], "training.momentum": [0.0, 0.9], "training.batch": [8]}
    (best,) = asked(document, space, sampler="grid", trials=2)
    tried = [tuple(trial.values()) for trial in values(best)]
    assert sorted(tried) == sorted(itertools.product((0.1, 0.3, 0.5), (0.0, 0.9), (8,)))
    assert best.best.values["training.lr"] == 0.3


def test_the_grid_sampler_tries_a_rule_without_the_parameter_less_often(document: Document) -> None:
    space = {"training.lr": [0.1, 0.3], "rule.params.steps": [1, 2, 3]}
    found = asked(document, space, sampler="grid", rule={"name": ["rfa", "median"]})
    assert {best.rule: len(best.trials) for best in found} == {"rfa": 6, "median": 2}


@pytest.mark.parametrize("sampler", ["random", "bayesian"])
def test_a_seed_decides_which_settings_are_tried(document: Document, sampler: str) -> None:
    once, again, other = (asked(document, LR, sampler=sampler, trials=12, seed=seed) for seed in (4, 4, 5))
    assert once == again
    assert values(once[0]) != values(other[0])


def test_the_bayesian_sampler_comes_nearer_to_the_best_than_it_began(document: Document) -> None:
    (best,) = asked(document, LR, sampler="bayesian", trials=30)
    early, late = best.trials[:10], best.trials[-10:]
    assert sum(t.accuracy for t in late) > sum(t.accuracy for t in early)


def test_two_rules_are_tried_at_different_settings(document: Document) -> None:
    found = asked(document, LR, rule={"name": ["krum", "median"]}, sampler="random", trials=3)
    assert values(found[0]) != values(found[1])


def test_a_rules_parameter_is_searched_for_rules_that_have_it(document: Document) -> None:
    rules = [{"name": "centered-clipping", "params": {"tau": 1}}, {"name": "median"}]
    space = {**LR, "rule.params.tau": {"low": 0.1, "high": 10.0, "log": True}}
    found = {best.rule: best for best in asked(document, space, rule=rules, sampler="random", trials=3)}
    assert all(
        trial.keys() == {"training.lr", "rule.params.tau"} for trial in values(found["centered-clipping"])
    )
    assert all(trial.keys() == {"training.lr"} for trial in values(found["median"]))


def test_parameters_that_a_table_fixes_tell_its_rules_apart(document: Document) -> None:
    rules = [{"name": "rfa", "params": {"nu": nu, "steps": 3}} for nu in (0.1, 0.2)]
    space = {"training.lr": [0.1], "rule.params.steps": [2]}
    found = asked(document, space, rule=rules, sampler="grid")
    assert sorted(best.rule for best in found) == ["rfa nu=0.1", "rfa nu=0.2"]


def test_a_parameter_that_no_rule_has_is_refused(document: Document) -> None:
    with pytest.raises(ImpossibleCell, match=r"'rule\.params\.tua' is a parameter of no rule in the file"):
        asked(document, {"rule.params.tua": [1, 2]})


def test_pre_aggregators_make_rules_of_their_own(document: Document) -> None:
    rule = {"name": ["krum", "median"], "pre": [[], ["nnm"], ["arc", "nnm"]]}
    found = asked(document, {"training.lr": [0.1]}, rule=rule, sampler="grid")
    assert sorted(best.rule for best in found) == sorted(
        pre + name for pre in ("", "nnm + ", "arc + nnm + ") for name in ("krum", "median")
    )


@pytest.mark.parametrize(
    ("bounds", "kind"),
    [
        ({"low": 1, "high": 64}, int),
        ({"low": 1, "high": 64, "log": True}, int),
        ({"low": 1.0, "high": 64.0}, float),
        ({"low": 1, "high": 64.5}, float),
    ],
)
def test_a_range_is_of_whole_numbers_where_both_ends_are_written_so(
    document: Document, bounds: dict[str, Any], kind: type
) -> None:
    name = "training.batch" if kind is int else "training.lr"
    (best,) = asked(document, {name: bounds}, sampler="random", trials=8)
    found = [trial[name] for trial in values(best)]
    assert {type(value) for value in found} == {kind}
    assert all(1 <= float(str(value)) <= 64.5 for value in found)
    assert kind is int or any(value != round(float(str(value))) for value in found)


def test_a_logarithmic_range_of_whole_numbers_tries_every_magnitude(document: Document) -> None:
    bounds = {"low": 1, "high": 1024, "log": True}
    (best,) = asked(document, {"training.batch": bounds}, sampler="random", trials=60)
    small = [trial for trial in values(best) if int(str(trial["training.batch"])) <= 32]
    assert 20 <= len(small) <= 40


def test_a_trial_changes_every_table_of_a_section(document: Document) -> None:
    seen: list[float] = []

    def run(grid: Grid) -> list[CellResult]:
        seen.extend(cell.training.lr for cell in grid.cells)
        return best_at(0.3)(grid)

    training = [{"steps": 1, "batch": 8, "lr": 9}, {"steps": 2, "batch": 8, "lr": 9}]
    search = {"space": {"training.lr": [0.1, 0.2]}, "sampler": "grid"}
    run_search(read_search({**document(training=training), "search": search}), run)
    assert seen == [0.1, 0.1, 0.2, 0.2]


def test_the_trials_of_all_rules_are_counted(document: Document) -> None:
    def count(rule: dict[str, Any], **search: Any) -> int:
        return trial_count(read_search({**document(rule=rule), "search": search}))

    assert count({"name": ["mean", "median"]}, space=LR, trials=7) == 14
    space = {"training.lr": [0.1, 0.2], "rule.params.steps": [1, 2, 3]}
    assert count({"name": ["rfa", "median"]}, space=space, sampler="grid") == 8


def test_every_trial_is_told_as_it_ends(document: Document) -> None:
    told: list[tuple[str, Trial]] = []
    search = read_search({**document(), "search": {"space": LR, "trials": 3, "sampler": "random"}})
    (best,) = run_search(search, best_at(0.3), lambda rule, trial: told.append((rule, trial)))
    assert told == [("mean", trial) for trial in best.trials]


@pytest.mark.parametrize("sampler", ["random", "bayesian", "grid"])
def test_a_search_that_goes_on_in_its_folder_runs_nothing_twice(
    document: Document, here: Any, tmp_path: Path, sampler: str
) -> None:
    space = {"training.lr": [0.1, 0.2, 0.4], "training.batch": [8, 16]}
    changes = document(attack={"name": ["none", "sign-flip"]})

    def search(trials: int) -> list[Best]:
        here.ran.clear()
        wanted = {"space": space, "trials": trials, "sampler": sampler}
        return run_search(
            read_search({**changes, "search": wanted}),
            lambda grid: list(run_grid(grid, b"", tmp_path, here, collect=False).results),
        )

    first = search(4)
    assert len(here.ran) == len(set(here.ran)) > 0
    assert search(4) == first
    assert here.ran == []


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        (None, r"no \[search\] with a \[search.space\]"),
        (3, r"no \[search\] with a \[search.space\]"),
        ({}, r"no \[search\] with a \[search.space\]"),
        ({"space": {}}, r"no \[search\] with a \[search.space\]"),
        ({"space": LR, "tries": 3}, r"unknown key \[search\] 'tries'; known: objective, sampler"),
        ({"space": LR, "objective": "mean"}, "search.objective is 'mean', expected one of honest, worst"),
        ({"space": LR, "sampler": "cmaes"}, "search.sampler is 'cmaes', expected one of bayesian, random"),
        ({"space": LR, "trials": 0}, "search.trials is 0, expected a whole number from 1 to 10000"),
        ({"space": LR, "trials": 2.5}, "search.trials is 2.5, expected a whole number"),
        ({"space": LR, "seed": -1}, "search.seed is -1, expected a whole number from 0"),
        ({"space": LR, "sampler": "grid"}, r'sampler "grid" needs lists of values in \[search.space\]'),
        ({"space": {"training.lr": 0.1}}, r"training.lr is 0.1, expected a list or \{ low"),
        ({"space": {"training.lr": []}}, r"training.lr is \[\], expected a list"),
        ({"space": {"training.lr": {"low": 1.0, "high": 1.0}}}, "training.lr is .* expected a list or"),
        ({"space": {"training.lr": {"low": 2, "high": 1}}}, "training.lr is .* expected a list or"),
        ({"space": {"training.lr": {"low": 1, "high": float("inf")}}}, "training.lr is .* expected a list"),
        ({"space": {"training.lr": {"low": "a", "high": "b"}}}, "training.lr is .* expected a list or"),
        ({"space": {"training.lr": {"low": 1, "high": 2, "step": 1}}}, "training.lr is .* expected a list"),
        ({"space": {"training.lr": {"low": 0, "high": 1, "log": True}}}, "low must be more than 0 with log"),
    ],
)  # fmt: skip
def test_a_search_that_makes_no_sense_is_refused(document: Document, search: object, complaint: str) -> None:
    given = document() if search is None else {**document(), "search": search}
    with pytest.raises(ImpossibleCell, match=complaint):
        read_search(given)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("speed.lr", r"'speed.lr' names no section of the file"),
        ("training", "'training' names no section of the file"),
        ("training.speed", r"unknown key \[training\] 'speed'; known: batch"),
        ("training.lr.start", "'training.lr.start': lr is no table of the file"),
    ],
)
def test_a_name_that_the_file_does_not_have_is_refused(document: Document, name: str, complaint: str) -> None:
    with pytest.raises(ImpossibleCell, match=complaint):
        asked(document, {name: [1, 2]})


def test_a_search_is_read_from_the_grids_own_file(grid_text: str) -> None:
    text = grid_text + '[search]\ntrials = 5\n[search.space]\n"training.lr" = { low = 0.1, high = 1.0 }\n'
    search = read_search(tomllib.loads(text))
    assert (search.objective, search.sampler, search.trials, search.seed) == ("worst", "bayesian", 5, 1)
    assert "search" not in search.document
    assert len(grid_of(search.document).cells) == 8
