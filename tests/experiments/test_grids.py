"""Grids: what a file means, what is refused, and that an interrupted run ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.aggregation import ATTACKS, PREAGGREGATORS, RULES, rule_spec
from folkmoot.aggregation.errors import AggregationError
from folkmoot.aggregation.rules import written_rule
from folkmoot.experiments.cells import ImpossibleCell
from folkmoot.experiments.grid_run import FolderBusy, _claimed, run_grid
from folkmoot.experiments.results import read_result, read_results
from folkmoot.experiments.search import objective_of, read_search, run_search
from folkmoot.experiments.specification import grid_of, read_grid
from folkmoot.experiments.workers import LocalWorkers, RayMissing, RayWorkers
from folkmoot.node.cli import execute
from folkmoot.node.datasets import DatasetError
from folkmoot.node.errors import ConfigError, FileProblem

SMALL = """
seeds = [1, 2]
[data]
set = "digits"
[model]
name = "linear"
[training]
steps = 1
batch = 8
lr = 0.3
[federation]
members = 7
malicious = 2
rounds = 12
evaluate_every = 4
[[rule]]
name = ["mean", "median"]
[[attack]]
name = ["none", "sign-flip"]
"""


def changed(**sections: object) -> dict:
    return {**tomllib.loads(SMALL), **sections}


def test_every_list_is_multiplied_out_and_seeds_vary_fastest():
    cells = grid_of(tomllib.loads(SMALL)).cells
    assert [(c.rule.name, c.attack.name, c.seed) for c in cells] == [
        (rule, attack, seed)
        for rule in ("mean", "median") for attack in ("none", "sign-flip") for seed in (1, 2)
    ]  # fmt: skip
    assert len({cell.id for cell in cells}) == 8


def test_a_section_may_be_a_list_of_tables_and_pre_a_list_of_lists():
    document = changed(
        rule=[{"name": "krum"}, {"name": "median", "pre": [[], ["nnm"], ["bucketing:s=2", "nnm"]]}],
        federation={"members": 11, "malicious": 2, "rounds": 1},
        attack={"name": "none"},
        seeds=1,
    )
    assert [cell.settings()["rule"] for cell in grid_of(document).cells] == [
        "krum", "median", "nnm + median", "bucketing s=2 + nnm + median",
    ]  # fmt: skip


def test_the_same_cell_described_twice_is_one_cell():
    # What liars see makes no difference to those who look at nothing.
    document = changed(attack={"name": "gaussian", "knowledge": ["omniscient", "blind"]})
    assert len(grid_of(document).cells) == 4


def test_a_cells_identity_is_made_of_its_settings():
    assert grid_of(tomllib.loads(SMALL)).cells[0].id == "d821d20eb104230d"


@pytest.mark.parametrize(
    ("section", "wrong", "told"),
    [
        ("data", {"set": "imagenet"}, "no data set 'imagenet'"),
        ("data", {"set": "digits", "sett": 1}, "unknown key [data] 'sett'"),
        ("model", {"name": "transformer"}, "no model 'transformer'"),
        ("partition", {"kind": "sorted"}, "sorted"),
        ("partition", {"kind": "dirichlet"}, "alpha"),
        ("partition", {"kind": "iid", "alpha": 1.0}, "alpha"),
        ("training", {"batch": 8, "lr": 0.1}, "steps or epochs"),
        ("training", {"batch": 8, "lr": 0.1, "steps": 1, "epochs": 1}, "steps or epochs"),
        ("training", {"batch": 8, "lr": -1, "steps": 1}, "training.lr"),
        ("training", {"batch": 8.5, "lr": 1, "steps": 1}, "training.batch"),
        ("training", {"batch": 8, "lr": 1, "steps": 1, "optimizer": "lion"}, "sgd, adam"),
        ("federation", {"members": 7, "malicious": 4, "rounds": 1}, "less than half"),
        ("federation", {"members": 7, "malicious": 0, "rounds": 1}, 'use attack "none"'),
        ("federation", {"members": 7, "rounds": 1}, "malicious is missing"),
        ("federation", {"members": 7, "malicious": 2, "rounds": 0}, "rounds"),
        ("rule", {"name": "krum", "params": {"power": 3}}, "power"),
        ("rule", {"name": "bulyan"}, "needs 11 members"),
        ("rule", {"name": "majority"}, "no rule"),
        ("rule", {"name": "median", "pre": ["nmm"]}, "no pre-aggregator"),
        ("rule", {"name": "centered-clipping", "params": {"tau": 1, "history": 1}}, "history"),
        ("attack", {"name": "sign-flop"}, "no attack"),
        ("attack", {"name": "copy", "knowledge": "blind"}, "omniscient"),
        ("attack", {"name": "mimic", "knowledge": "clairvoyant"}, "expected one of omniscient, blind"),
        ("attack", {"name": "sign-flip", "params": {"strenght": 1}}, "strength"),
        ("attack", {"name": []}, "empty list"),
        ("lattice", {"bits": 12}, "8 or 16"),
        ("seeds", [], "empty"),
        ("seeds", [-1], "seed -1"),
        ("scores", ["charm"], "no score 'charm'"),
        ("plugins", ["no_such_module_anywhere"], "PYTHONPATH"),
        ("rules", {}, "unknown key 'rules'"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_way_out(section, wrong, told):
    with pytest.raises((ImpossibleCell, AggregationError, DatasetError)) as refusal:
        grid_of(changed(**{section: wrong}))
    assert told in str(refusal.value)


def test_blind_liars_who_know_too_little_are_refused():
    federation = {"members": 7, "malicious": 1, "rounds": 1}
    attack = {"name": "little-is-enough", "knowledge": "blind"}
    with pytest.raises(ImpossibleCell, match="blind liars know 1"):
        grid_of(changed(federation=federation, attack=attack))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(FileProblem, match="absent"):
        read_grid(tmp_path / "absent.toml")
    (tmp_path / "cut.toml").write_text("[data")
    with pytest.raises(ConfigError, match=r"cut\.toml"):
        read_grid(tmp_path / "cut.toml")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(
        ["", "digits", "median", "nnm", "sign-flip", "mlp", "iid", "blind", "sgd", "x"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "set", "kind", "params", "pre", "alpha", "lr", "members", "tau", "options"]),
        inner, max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(
    st.sampled_from([*tomllib.loads(SMALL), "partition", "lattice", "scores", "folder", "name"]), values,
    min_size=1, max_size=2,
))  # fmt: skip
def test_no_document_ends_in_anything_but_a_grid_or_a_refusal(sections):
    with contextlib.suppress(ImpossibleCell, AggregationError, DatasetError):
        grid_of(changed(**sections))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_written_as_it_is_read(name):
    needed = {p.name: 3 if p.name != "tau" else "1.5" for p in RULES[name].parameters if not p.optional}
    pre = [] if "cap" in needed or name == "monna" else ["nnm", "clipping:tau=0.25", "arc"]
    spec = rule_spec(name, 2, needed, pre)
    params, written = written_rule(spec)
    assert rule_spec(name, 2, params, written) == spec
    assert len(PREAGGREGATORS) == 4


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    grid = grid_of(tomllib.loads(SMALL))
    with LocalWorkers(2, None) as workers:
        outcome = run_grid(grid, SMALL.encode(), folder, workers)
    assert not outcome.failures
    assert [r.id for r in outcome.results] == [c.id for c in grid.cells]
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("times.jsonl", ".lock")
    }


def test_results_stand_in_the_order_of_the_grid(uninterrupted):
    lines = (uninterrupted / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"] for line in lines] == [c.id for c in grid_of(tomllib.loads(SMALL)).cells]
    assert {r.id for r in read_results(uninterrupted)} == {json.loads(line)["cell"] for line in lines}


class NoWorkers:
    def run(self, cells, advance):
        raise AssertionError(f"{len(cells)} cells are run again")


def test_a_finished_grid_runs_nothing_again(uninterrupted):
    before = contents(uninterrupted)
    run_grid(grid_of(tomllib.loads(SMALL)), SMALL.encode(), uninterrupted, NoWorkers())
    assert contents(uninterrupted) == before


@pytest.mark.slow
def test_a_grid_killed_in_the_middle_and_resumed_has_the_same_bytes(tmp_path, uninterrupted):
    (tmp_path / "grid.toml").write_text(SMALL)
    command = [
        sys.executable, "-m", "folkmoot.node.cli", "experiment", "run", str(tmp_path / "grid.toml"), "--out",
        str(tmp_path / "out"), "--workers", "1",
    ]  # fmt: skip
    victim = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out/cells").glob("*.json"))) < 2:
        assert time.monotonic() < deadline
        assert victim.poll() is None
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    while workers_of(victim.pid):
        assert time.monotonic() < deadline, "a worker outlived its parent"
    done = len(list((tmp_path / "out/cells").glob("*.json")))
    assert 2 <= done < 8
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    assert contents(tmp_path / "out") == contents(uninterrupted)


def workers_of(session: int) -> list[int]:
    """Processes of a session that are still alive."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if int(sid) == session and state != "Z":
                found.append(int(entry.name))
    return found


def test_a_cell_that_fails_is_told_and_the_others_are_kept(tmp_path):
    document = changed(model={"name": ["linear", "small-cnn"]}, seeds=[1], attack={"name": "none"})
    grid = grid_of(document)
    with LocalWorkers(1, None) as workers:
        outcome = run_grid(grid, b"", tmp_path, workers)
    assert len(outcome.results) == 2
    assert [cell.model.name for cell, _ in outcome.failures] == ["small-cnn"] * 2
    assert "needs images" in outcome.failures[0][1]
    assert not (tmp_path / "results.jsonl").exists()


def test_one_folder_belongs_to_one_run(tmp_path):
    with _claimed(tmp_path), pytest.raises(FolderBusy, match="another run"):
        run_grid(grid_of(tomllib.loads(SMALL)), b"", tmp_path, NoWorkers())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileProblem, match="file"):
        run_grid(grid_of(tomllib.loads(SMALL)), b"", tmp_path / "file" / "out", NoWorkers())


def test_a_damaged_result_is_named(tmp_path, uninterrupted):
    cells = tmp_path / "cells"
    cells.mkdir()
    name = next((uninterrupted / "cells").glob("*.json")).stem
    (cells / f"{name}.json").write_bytes((uninterrupted / "cells" / f"{name}.json").read_bytes())
    (cells / f"{name}.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=name):
        read_result(cells / f"{name}.json")


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(tmp_path, uninterrupted):
    pytest.importorskip("ray")
    with RayWorkers("local", None) as workers:
        run_grid(grid_of(tomllib.loads(SMALL)), SMALL.encode(), tmp_path, workers)
    assert contents(tmp_path) == contents(uninterrupted)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:x"])
def test_a_dead_ray_cluster_is_told_at_once(address):
    pytest.importorskip("ray")
    with pytest.raises(RayMissing), RayWorkers(address, None):
        pass


SEARCH = {"trials": 3, "space": {"training.lr": {"low": 0.01, "high": 1.0, "log": True}}}


def made_up(grid):
    """Results whose accuracy is a function of the settings: the best learning rate is 0.1."""
    from dataclasses import replace

    from folkmoot.experiments.results import CellResult, Evaluation

    found = []
    for cell in grid.cells:
        worse = 0.2 if cell.attack.name == "sign-flip" and cell.rule.name == "mean" else 0.0
        accuracy = 0.9 - abs(cell.training.lr - 0.1) / 10 - worse
        result = CellResult(cell.id, cell.settings(), (Evaluation(1, accuracy, 1.0, ""),), {}, {}, 0, 0)
        found.append(replace(result))
    return found


@pytest.mark.parametrize("sampler", ["bayesian", "random"])
def test_a_search_is_repeatable_and_ranks_the_rules(sampler):
    search = read_search(changed(search={**SEARCH, "sampler": sampler}))
    first, again = run_search(search, made_up), run_search(search, made_up)
    assert first == again
    assert [best.rule for best in first] == ["median", "mean"]
    assert first[1].best.accuracy < first[0].best.accuracy - 0.1
    assert len(first[0].trials) == 3


def test_a_grid_search_tries_every_combination_once():
    space = {"training.lr": [0.05, 0.1], "training.momentum": [0.0, 0.5], "rule.params.steps": [1, 2]}
    document = changed(search={"sampler": "grid", "space": space}, rule={"name": ["median", "rfa"]})
    found = {best.rule: best for best in run_search(read_search(document), made_up)}
    assert len(found["median"].trials) == 4
    assert len({tuple(sorted(t.values.items())) for t in found["rfa"].trials}) == 8
    assert found["median"].best.values["training.lr"] == 0.1


def test_the_objective_is_the_worst_mean_over_seeds_or_the_honest_one():
    results = made_up(grid_of(changed(rule={"name": "mean"}, training={"steps": 1, "batch": 8, "lr": 0.1})))
    assert objective_of("worst", results) == pytest.approx(0.7)
    assert objective_of("honest", results) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"space": {}}, "no [search]"),
        ({"space": {"training.lr": {"low": 1, "high": 0.1}}}, "training.lr"),
        ({"space": {"training.lr": [0.1]}, "trails": 3}, "trails"),
        ({"space": {"training.lr": {"low": 0.1, "high": 1}}, "sampler": "grid"}, "lists of values"),
        ({"space": {"training.lr": [0.1]}, "trials": 0}, "search.trials"),
    ],
)  # fmt: skip
def test_a_search_that_makes_no_sense_is_refused(search, told):
    with pytest.raises(ImpossibleCell) as refusal:
        read_search(changed(search=search))
    assert told in str(refusal.value)


def test_the_command_line_tells_what_would_run_and_what_is_wrong(tmp_path, capsys):
    grid = tmp_path / "grid.toml"
    grid.write_text(SMALL)
    assert execute(["experiment", "run", str(grid), "--out", str(tmp_path / "o"), "--dry-run"]) == 0
    assert "8 cells, 0 of them done" in capsys.readouterr().out
    assert execute(["experiment", "run", str(grid), "--out", str(tmp_path / "o"), "--dry-run", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 8
    grid.write_text(SMALL.replace("members = 7", "member = 7"))
    assert execute(["experiment", "run", str(grid), "--out", str(tmp_path / "o")]) == 2
    assert "unknown key [federation] 'member'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("members = 7", "members = 3"), "at least 4 members"),
        (('name = ["mean", "median"]', 'name = "median"\npre = ["bucketing:s=1"]'), "buckets"),
        (('["none", "sign-flip"]', '"nan"'), "refuses to send"),
    ],
)  # fmt: skip
def test_what_nodes_cannot_run_is_refused(tmp_path, capsys, change, told):
    grid = tmp_path / "grid.toml"
    grid.write_text(SMALL.replace(*change).replace("malicious = 2", "malicious = 1"))
    assert execute(["experiment", "network", str(grid), "--out", str(tmp_path / "o")]) == 2
    assert told in capsys.readouterr().err


def test_every_attack_has_a_place_in_a_grid():
    names = sorted(ATTACKS)
    assert len(grid_of(changed(attack={"name": names}, rule={"name": "median"}, seeds=1)).cells) == len(names)
