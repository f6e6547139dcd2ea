"""A task as a person writes it, and what that person is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from folkmoot.aggregation import RuleSpec, ScoreSpec
from folkmoot.node.errors import ConfigError, FileProblem
from folkmoot.node.home import Home
from folkmoot.node.model import read_model
from folkmoot.node.specification import decode_specification
from folkmoot.node.task_file import DraftedTask, draft_task, hand_over
from folkmoot.p2p.unixfs import cid_of_file

GOOD = """
name = "lines"
rounds = 5
[rule]
name = "multi-krum"
f = 1
params = { m = 2 }
[windows]
commit = 600
reveal = 120
attempt = 60
[model]
factory = "lines:create"
options = { start = 0.5 }
[lattice]
bits = 8
exponent = -5
[scores]
similarity = 2
[fit]
lr = 0.1
epochs = 2
"""

TRAINER = """
import numpy as np


class Lines:
    def __init__(self, start):
        self.start = start

    def initial_weights(self):
        return {"w": np.full((2, 3), self.start, np.float32), "b": np.zeros(3, np.float32)}

    def fit(self, weights, config):
        return weights, 1, {}

    def evaluate(self, weights, config):
        return 0.0, 1, {}


def create(start):
    return Lines(start)
"""


@pytest.fixture(autouse=True)
def _trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lines.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(tmp_path)


def draft(tmp_path: Path, text: str) -> DraftedTask:
    (tmp_path / "task.toml").write_text(text, encoding="utf-8")
    return draft_task(tmp_path / "task.toml")


def test_a_task_file_becomes_a_specification_with_its_genesis(tmp_path: Path) -> None:
    task = draft(tmp_path, GOOD)
    specification = task.specification
    assert specification.name == "lines"
    assert specification.rule == RuleSpec("multi-krum", 1, (("m", 2),))
    assert (specification.lattice.bits, specification.lattice.exponents) == (8, (-5, -5))
    assert (specification.commit_window, specification.reveal_window, specification.attempt_window) == (
        600,
        120,
        60,
    )
    assert specification.scores == ScoreSpec((("similarity", 2),))
    assert dict(specification.fit) == {"lr": 0.1, "epochs": 2}
    assert [t.shape for t in specification.layout.tensors] == [(2, 3), (3,)]
    assert task.genesis.tolist() == [0.5] * 6 + [0.0] * 3


def test_optional_parts_have_defaults(tmp_path: Path) -> None:
    short = GOOD[: GOOD.index("[lattice]")]
    specification = draft(tmp_path, short).specification
    assert (specification.lattice.bits, set(specification.lattice.exponents)) == (16, {-13})
    assert specification.scores == ScoreSpec()
    assert specification.fit == ()


def test_the_same_file_gives_the_same_digest(tmp_path: Path) -> None:
    assert draft(tmp_path, GOOD).specification.cid == draft(tmp_path, GOOD).specification.cid


def test_what_is_handed_over_is_what_the_chain_will_name(tmp_path: Path) -> None:
    task, home = draft(tmp_path, GOOD), Home(tmp_path / "home")
    hand_over(task, home)
    specification = task.specification
    document = (home.outbox / f"{specification.cid}.document").read_bytes()
    assert decode_specification(document) == specification
    model = home.outbox / f"{specification.genesis}.file"
    assert cid_of_file(model) == specification.genesis
    assert np.array_equal(read_model(model, specification.layout), task.genesis)


@pytest.mark.parametrize(
    ("found", "written", "why"),
    [
        ("rounds = 5", "rounds = 0", "rounds"),
        ("rounds = 5", 'rounds = "5"', "rounds must be a whole number"),
        ("rounds = 5", "rounds = true", "rounds must be a whole number"),
        ("rounds = 5", "", "'rounds' is missing"),
        ("rounds = 5", "rounds = 5\nround = 6", "unknown key 'round'"),
        ('name = "multi-krum"', 'name = "mystery"', "mystery"),
        ("f = 1", "f = -1", "f is -1"),
        ("f = 1", "f = 1\nextra = 2", "unknown key .rule. 'extra'"),
        ("{ m = 2 }", "{ m = 0 }", "m"),
        ("{ m = 2 }", "{ q = 2 }", "q"),
        ("{ m = 2 }", "7", "params"),
        ("commit = 600", "", "'commit' is missing"),
        ("commit = 600", "commit = 1.5", "windows.commit must be a whole number"),
        ("bits = 8", "bits = 12", "8 or 16 bits"),
        ("exponent = -5", "exponent = 500", "exponent 500"),
        ("similarity = 2", "charm = 2", "charm"),
        ("epochs = 2", "epochs = nan", "fit.epochs"),
        ("epochs = 2", "epochs = 99999999999999999999", "fit.epochs"),
        ("epochs = 2", "epochs = [1]", "fit.epochs"),
        ("[fit]", "[fit", "task.toml"),
        ("[lattice]", "[fits]", "unknown key .fits.|unknown key 'fits'"),
        ('name = "lines"', "name = 7", "name must be text"),
        (
            '[model]\nfactory = "lines:create"\noptions = { start = 0.5 }',
            "[model]\nfactory = 3",
            "model.factory must be text",
        ),
    ],
)
def test_a_wrong_value_is_named_with_the_file(tmp_path: Path, found: str, written: str, why: str) -> None:
    assert found in GOOD
    with pytest.raises(ConfigError, match=why) as caught:
        draft(tmp_path, GOOD.replace(found, written, 1))
    assert "task.toml" in str(caught.value)


def test_a_missing_file_is_a_problem_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"cannot read .*absent\.toml"):
        draft_task(tmp_path / "absent.toml")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"task\.toml"):
        draft_task(tmp_path / "task.toml")
