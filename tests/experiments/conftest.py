"""What tests of experiments share: the digits read once, a tiny grid, and workers in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

import pytest

from folkmoot.experiments.cells import Cell
from folkmoot.experiments.specification import grid_of
from folkmoot.experiments.workers import Advance, Finished, work
from folkmoot.node.datasets import Dataset, load_dataset

TINY: Final[dict[str, Any]] = {
    "data": {"set": "digits"},
    "model": {"name": "linear"},
    "training": {"steps": 1, "batch": 16, "lr": 0.5},
    "federation": {"members": 11, "malicious": 2, "rounds": 2},
    "rule": {"name": "mean"},
}

EIGHT_CELLS: Final = """
seeds = [1, 2]
scores = ["influence"]
[data]
set = "digits"
[model]
name = "mlp"
[training]
steps = 1
batch = 16
lr = 0.5
[federation]
members = 6
malicious = 1
rounds = 20
[rule]
name = ["median", "mean"]
[attack]
name = ["sign-flip", "none"]
"""


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture
def document() -> Callable[..., dict[str, Any]]:
    """The parsed file of one quick cell; each argument changes a section, or replaces what is no table."""

    def changed(**sections: Any) -> dict[str, Any]:
        found = copy.deepcopy(TINY)
        for name, value in sections.items():
            found[name] = {**found.get(name, {}), **value} if isinstance(value, dict) else value
        return found

    return changed


@pytest.fixture
def cell(document: Callable[..., dict[str, Any]]) -> Callable[..., Cell]:
    """One quick cell, with changes as `document` takes them."""

    def made(**sections: Any) -> Cell:
        (only,) = grid_of(document(**sections)).cells
        return only

    return made


@pytest.fixture(scope="session")
def grid_text() -> str:
    """The file of eight quick cells."""
    return EIGHT_CELLS


class WorkersHere:
    """Runs cells in this process, and remembers which."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(self, cells: Sequence[Cell], advance: Advance) -> Iterator[Finished]:
        for cell in cells:
            self.ran.append(cell.id)
            yield work(cell, None, advance)


@pytest.fixture
def here() -> WorkersHere:
    return WorkersHere()
