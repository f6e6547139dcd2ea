"""What a grid's file means: lists multiply out, and whatever cannot be run is refused with a way out."""

from __future__ import annotations

import contextlib
import copy
import datetime
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.aggregation import ATTACKS, PREAGGREGATORS, RULES, SCORES
from folkmoot.aggregation.errors import AggregationError
from folkmoot.experiments.cells import Cell, ImpossibleCell
from folkmoot.experiments.specification import grid_of, read_grid, told_of
from folkmoot.node.datasets import DATASETS, DatasetError
from folkmoot.node.errors import ConfigError
from folkmoot.node.partitions import PARTITIONS

Document = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("data", "set", ["digits", "breast-cancer"]),
        ("model", "name", ["linear", "mlp"]),
        ("training", "lr", [0.1, 0.2]),
        ("training", "steps", [1, 2]),
        ("training", "optimizer", ["sgd", "adam"]),
        ("federation", "members", [11, 12]),
        ("federation", "malicious_data", [0.5, 1.0]),
        ("federation", "f", [1, 2]),
        ("lattice", "bits", [8, 16]),
        ("rule", "name", ["mean", "median"]),
        ("attack", "name", ["none", "nan"]),
    ],
)
def test_a_list_in_any_section_is_multiplied_out(
    document: Document, section: str, key: str, values: list[Any]
) -> None:
    cells = grid_of(document(**{section: {key: values}})).cells
    alone = [grid_of(document(**{section: {key: value}})).cells[0] for value in values]
    assert list(cells) == alone
    assert len({cell.id for cell in cells}) == 2


@pytest.mark.parametrize(
    ("section", "table", "read"),
    [
        ("model", {"name": "mlp", "options": {"hidden": [8, 16]}}, lambda c: dict(c.model.options)["hidden"]),
        ("attack", {"name": "sign-flip", "params": {"strength": [8, 16]}}, lambda c: c.attack.params[0][1]),
        ("rule", {"name": "multi-krum", "params": {"m": [8, 16]}}, lambda c: dict(c.rule.params)["m"]),
    ],
)
def test_a_list_inside_an_inner_table_is_multiplied_out(
    document: Document, section: str, table: dict[str, Any], read: Callable[[Cell], object]
) -> None:
    grid = grid_of(document(federation={"members": 20}, **{section: table}))
    assert [read(cell) for cell in grid.cells] == [8, 16]


def test_the_last_list_of_the_file_varies_before_the_first(document: Document) -> None:
    found = grid_of(
        document(training={"lr": [0.1, 0.2]}, rule={"name": ["mean", "median"]}, seeds=[1, 2])
    ).cells
    expected = itertools.product((0.1, 0.2), ("mean", "median"), (1, 2))
    assert [(c.training.lr, c.rule.name, c.seed) for c in found] == list(expected)


def test_tables_of_a_section_follow_each_other_with_their_own_lists(document: Document) -> None:
    partition = [{"kind": "iid"}, {"kind": "dirichlet", "alpha": [0.1, 1]}, {"kind": "shards", "shards": 2}]
    labels = [cell.partition.label for cell in grid_of(document(partition=partition)).cells]
    assert labels == ["iid", "dirichlet alpha=0.1", "dirichlet alpha=1", "shards shards=2"]


def test_pre_is_one_list_of_pre_aggregators_or_a_list_of_such_lists(document: Document) -> None:
    def labels(pre: object) -> list[object]:
        rule = {"name": "median", "pre": pre}
        return [cell.settings()["rule"] for cell in grid_of(document(rule=rule)).cells]

    assert labels(["arc", "nnm"]) == ["arc + nnm + median"]
    assert labels([["arc", "nnm"], [], ["arc"]]) == ["arc + nnm + median", "median", "arc + median"]


def test_a_cell_that_is_described_twice_keeps_its_first_place(document: Document) -> None:
    rules = [{"name": ["mean", "median"]}, {"name": ["krum", "mean"]}]
    assert [cell.rule.name for cell in grid_of(document(rule=rules)).cells] == ["mean", "median", "krum"]


def test_what_is_left_out_is_honest_and_iid_with_the_rule_told_the_truth(document: Document) -> None:
    (cell,) = grid_of(document()).cells
    assert (cell.attack.name, cell.partition.kind, cell.rule.f, cell.seed) == ("none", "iid", 2, 1)
    assert (cell.bits, cell.evaluate_every, cell.malicious_data, cell.scores) == (16, 10, 1.0, ())


def test_scores_are_kept_sorted_and_once(document: Document) -> None:
    (cell,) = grid_of(document(scores=["shapley", "influence", "shapley"])).cells
    assert cell.scores == ("influence", "shapley")


def test_a_grid_has_the_name_of_its_file_and_the_folder_of_its_data(document: Document) -> None:
    assert grid_of(document(), "digits").name == "digits"
    grid = grid_of(document(name="mine", folder="mnist"))
    assert (grid.name, grid.folder) == ("mine", Path("mnist"))


@pytest.mark.parametrize("section", ["data", "model", "training", "federation", "rule"])
def test_a_section_that_every_grid_needs_is_missed(document: Document, section: str) -> None:
    without = {name: table for name, table in document().items() if name != section}
    with pytest.raises(ImpossibleCell, match=rf"the section \[{section}\] is missing"):
        grid_of(without)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("data", "set"),
        ("model", "name"),
        ("training", "lr"),
        ("training", "batch"),
        ("federation", "members"),
        ("federation", "malicious"),
        ("federation", "rounds"),
        ("rule", "name"),
    ],
)
def test_a_key_that_every_grid_needs_is_missed(document: Document, section: str, key: str) -> None:
    without = document()
    without[section] = {name: value for name, value in without[section].items() if name != key}
    with pytest.raises(ImpossibleCell, match=rf"\[{section}\] {key} is missing"):
        grid_of(without)


@pytest.mark.parametrize(
    "section", ["data", "partition", "model", "training", "federation", "lattice", "rule", "attack"]
)
def test_an_unknown_key_is_refused_with_the_known_ones(document: Document, section: str) -> None:
    with pytest.raises(ImpossibleCell, match=rf"unknown key \[{section}\] 'colour'; known: \w+"):
        grid_of(document(**{section: {"colour": 1}}))


@pytest.mark.parametrize(
    ("section", "wrong", "complaint"),
    [
        ("data", {"set": 3}, "no data set 3; known: digits"),
        ("model", {"name": 3}, "model.name is 3, expected text"),
        ("model", {"options": 3}, "model.options is 3, expected a table"),
        ("model", {"name": "mlp", "options": {"hidden": {"deep": 1}}}, r"model.options.hidden is \{'deep'"),
        ("model", {"name": "resnet"}, "no model 'resnet'; known: linear, .* package.module:factory"),
        ("model", {"name": "nowhere_at_all:model"}, "'nowhere_at_all:model': .* on PYTHONPATH"),
        ("model", {"name": "os:sep"}, "'os:sep' is no function"),
        ("partition", {"kind": "random"}, "no partition is called 'random'; choose one of iid"),
        ("partition", {"kind": "dirichlet"}, "dirichlet needs alpha, which must be a positive number"),
        ("partition", {"kind": "dirichlet", "alpha": 0}, "alpha must be a positive number, found 0"),
        ("partition", {"kind": "iid", "alpha": 1}, r"unknown key \[partition\] 'alpha'; known: among, kind"),
        ("partition", {"kind": "dirichlet", "alpha": 10**400}, "partition.alpha is too large"),
        ("training", {"lr": "fast"}, "training.lr is 'fast', expected a number"),
        ("training", {"lr": 10**400}, "training.lr is too large"),
        ("training", {"lr": True}, "training.lr is True, expected a number"),
        ("training", {"batch": 1.5}, "training.batch is 1.5, expected a whole number"),
        ("training", {"optimizer": 1}, "training.optimizer is 1, expected text"),
        ("training", {"epochs": 1}, "either steps or epochs"),
        ("federation", {"members": "many"}, "federation.members is 'many', expected a whole number"),
        ("federation", {"malicious_data": "all"}, "federation.malicious_data is 'all', expected a number"),
        ("federation", {"f": -1}, "f is -1, expected 0 to 255"),
        ("lattice", {"bits": 12}, "8 or 16 bits, found 12"),
        ("lattice", {"exponent": -111}, "exponent -111 .* outside"),
        ("rule", {"name": "vote"}, "no rule 'vote'; known: mean"),
        ("rule", {"name": "krum", "params": {"power": 3}}, "krum: power is 3, expected 1 to 2"),
        ("rule", {"name": "krum", "params": {"m": 3}}, "krum has no parameter 'm'; known: excluded, power"),
        ("rule", {"name": "krum", "params": [3]}, "rule.params is 3, expected a table"),
        ("rule", {"name": "centered-clipping"}, "needs the parameter tau: longest allowed length"),
        ("rule", {"pre": "nnm"}, "rule.pre is 'nnm', expected a list of pre-aggregators or a list of such"),
        ("rule", {"pre": ["mixing"]}, "no pre-aggregator 'mixing'; known: nnm"),
        ("rule", {"pre": ["bucketing"]}, "bucketing needs the parameter s"),
        ("attack", {"name": "bribe"}, "no attack 'bribe'; known: sign-flip"),
        ("attack", {"name": "sign-flip", "params": {"strength": "x"}}, "strength is 'x', expected a finite"),
        ("attack", {"name": "min-max", "params": {"perturbation": "up"}}, "expected one of std, unit-vector"),
        ("attack", {"name": "backdoor", "params": {"fraction": 2}}, "fraction is 2, expected .* 0.0 to 1.0"),
        ("attack", {"knowledge": "partial"}, "'partial', expected one of omniscient, blind"),
        ("attack", {"knowledge": {}}, r"attack.knowledge is \{\}, expected one of"),
        ("attack", {"name": "sign-flip", "params": 3}, "attack.params is 3, expected a table"),
        ("seeds", [0.5], "seeds is 0.5, expected a whole number"),
        ("seeds", [2**32], r"seed 4294967296 is not from 0 to 2\^32 - 1"),
        ("seeds", [], "seeds is an empty list"),
        ("scores", ["fame"], "no score 'fame'; known: similarity"),
        ("scores", [[]], r"scores is \[\], expected text"),
        ("folder", 3, "folder is 3, expected the path"),
        ("plugins", [3], "plugins is 3, expected text"),
        ("model", [], r"\[model\] is empty; leave it out"),
        ("rule", [3], r"\[rule\] must be a table or a list of tables, found 3"),
        ("training", {"lr": []}, "training.lr is an empty list"),
        ("attack", {"name": "sign-flip", "params": {"strength": []}}, "params.strength is an empty list"),
        ("speed", {}, "unknown key 'speed'; known: attack"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_its_key(
    document: Document, section: str, wrong: object, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as refusal, told_of(Path("some/grid.toml")):
        grid_of(document(**{section: wrong}))
    assert str(refusal.value).startswith("some/grid.toml: ")


@pytest.mark.parametrize(
    "many",
    [
        {"seeds": list(range(100_001))},
        {"training": {"lr": [i / 1e5 for i in range(1, 401)], "batch": list(range(1, 301))}},
        {"training": {key: [i / 1e3 for i in range(1, 1000)] for key in ("lr", "momentum", "weight_decay")}},
        {"attack": {"params": {name: list(range(1000)) for name in "abcdefgh"}}},
    ],
    ids=["seeds", "lists", "a billion", "inside a table"],
)
def test_too_many_cells_are_refused_before_they_are_made(document: Document, many: dict[str, Any]) -> None:
    with pytest.raises(ImpossibleCell, match="more than 100,000 cells; divide it"):
        grid_of(document(**many))


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"grid\.toml"):
        read_grid(tmp_path / "grid.toml")


WORDS = st.sampled_from(
    [
        *("digits", "linear", "mlp", "os:sep", ":x", "x:", ".a:b", "omniscient", "blind", "sgd", "adam"),
        *("cosine", "loop", "name", "0.5", "-1", "nan", "1/0", "bucketing:s=2", "clipping:tau=", "arc:", ""),
        *PARTITIONS, *RULES, *PREAGGREGATORS, *ATTACKS, *SCORES, *DATASETS,
    ]
)  # fmt: skip
KEYS = st.sampled_from(
    [
        *("set", "kind", "alpha", "shards", "gamma", "name", "options", "hidden", "lr", "batch", "steps"),
        *("epochs", "momentum", "members", "malicious", "f", "rounds", "params", "pre", "knowledge", "tau"),
        *("cap", "m", "s", "pivot", "strength", "victim", "bits", "exponent", ""),
    ]
)
SCALARS = st.one_of(
    WORDS,
    st.integers(-2, 12),
    st.sampled_from([10**400, -(10**400), 2**63, float("inf"), float("nan"), 1e300, -0.0, 0.5, 5e-324]),
    st.booleans(),
    st.just(datetime.date(2024, 2, 29)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


def places(node: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path to everything inside a document."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [*([path] if path else []), *(p for key, value in inner for p in places(value, (*path, key)))]


FULL: dict[str, Any] = {
    "seeds": [1],
    "scores": ["influence"],
    "data": {"set": "digits"},
    "partition": {"kind": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp", "options": {"hidden": 8}},
    "training": {"steps": 1, "batch": 16, "lr": 0.5, "momentum": 0.9, "optimizer": "sgd"},
    "federation": {"members": 11, "malicious": 2, "rounds": 2, "f": 2, "malicious_data": 0.5},
    "lattice": {"bits": 16, "exponent": -12},
    "rule": [{"name": "centered-clipping", "params": {"tau": 1.5}, "pre": ["nnm"]}],
    "attack": {"name": "sign-flip", "params": {"strength": 2}, "knowledge": "blind"},
}


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(places(FULL)), VALUES), min_size=1, max_size=2), st.data())
def test_any_document_is_a_grid_or_is_refused_by_name(
    changes: list[tuple[tuple[str | int, ...], Any]], data: st.DataObject
) -> None:
    changed = copy.deepcopy(FULL)
    for path, value in changes:
        table: Any = changed
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for step in path[:-1]:
                table = table[step]
            table[path[-1]] = value
            if isinstance(table, dict) and data.draw(st.booleans()):
                table[data.draw(KEYS)] = data.draw(VALUES)
    with contextlib.suppress(ImpossibleCell, AggregationError, DatasetError):
        cells = grid_of(changed).cells
        assert len({cell.id for cell in cells}) == len(cells) > 0
        json.dumps([cell.settings() for cell in cells])


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("bucketing", 144),
        ("bucketing-momentum", 144),
        ("commit-reveal", 450),
        ("digits", 324),
        ("network", 1),
        ("scores", 144),
    ],
)
def test_every_example_is_a_grid(name: str, cells: int) -> None:
    folder = Path(__file__).parents[2] / "examples"
    assert len(read_grid(folder / f"{name}.toml").cells) == cells
    assert len(list(folder.iterdir())) == 6
