"""A cell's members as trainers of real nodes, so that the network can run what ran in memory.

A node's configuration names `folkmoot.experiments.members:create`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation import AttackTarget
from folkmoot.experiments.cells import Cell
from folkmoot.experiments.federation import (
    Federation,
    initial_network,
    initial_weights,
    layout_of,
    local_training,
    measure,
    member_data,
)
from folkmoot.experiments.specification import read_grid
from folkmoot.node.datasets import Dataset, load_dataset
from folkmoot.node.torch_trainer import one_thread
from folkmoot.node.trainer import Config, Weights

__all__ = ["HonestMember", "LyingMember", "create", "one_at_a_time"]

Floats = npt.NDArray[np.float32]


class RoundMissed(RuntimeError):
    """A member keeps momentum from round to round, so it cannot skip or repeat one."""


def create(grid: str, cell: str, index: int) -> HonestMember:
    """The trainer of member `index` in the cell of this id in a grid's file.

    Raises ValueError for an unknown cell or index, and what reading grid and data raises.
    """
    specification = read_grid(Path(grid))
    chosen = next((c for c in specification.cells if c.id == cell), None)
    if chosen is None:
        raise ValueError(f"{grid} has no cell {cell}")
    if not 0 <= index < chosen.members:
        raise ValueError(f"index must be from 0 to {chosen.members - 1}, found {index}")
    dataset = load_dataset(chosen.data, specification.folder)
    lies = index >= chosen.members - chosen.malicious and chosen.attack.target is AttackTarget.UPDATES
    return (LyingMember if lies else HonestMember)(one_at_a_time(chosen), dataset, index)


def one_at_a_time(cell: Cell) -> Cell:
    """The same cell with members trained one after the other, as processes of their own do it."""
    return replace(cell, training=replace(cell.training, engine="loop"))


class HonestMember:
    """Trains on its own examples, whatever they are, and sends what it learned."""

    def __init__(self, cell: Cell, dataset: Dataset, index: int) -> None:
        self._cell, self._dataset, self._index = cell, dataset, index
        self._network = initial_network(cell, dataset)
        self._layout = layout_of(self._network)
        own = member_data(cell, dataset)[index]
        self._examples = len(own.labels)
        self._training = local_training(cell, dataset, [own], [index])
        self._next = 0

    def initial_weights(self) -> dict[str, Floats]:
        """The cell's initial model, the same for every member."""
        return dict(self._layout.unflatten(initial_weights(self._network)))

    def fit(self, weights: Weights, config: Config) -> tuple[Weights, int, dict[str, float]]:
        """This round's training. Raises RoundMissed."""
        number = int(config["round"])
        if number != self._next:
            raise RoundMissed(
                f"round {number} after {self._next} rounds; an experiment cannot go on after a restart"
            )
        self._next += 1
        base = np.concatenate([tensor.reshape(-1) for tensor in weights])
        with one_thread():
            trained = self._model(base, number)
        return list(self._layout.unflatten(trained).values()), self._examples, {}

    def evaluate(self, weights: Weights, config: Config) -> tuple[float, int, dict[str, float]]:
        """Loss and accuracy on the common test set."""
        flat = np.concatenate([tensor.reshape(-1) for tensor in weights])
        accuracy, loss = measure(self._cell, self._network, self._layout, flat, self._dataset.test)
        return loss, len(self._dataset.test.labels), {"accuracy": accuracy}

    def _model(self, base: Floats, number: int) -> Floats:
        trained: Floats = self._training.train(base, number)[0]
        return trained


class LyingMember(HonestMember):
    """Sends the lie of the cell's attack. To know what honest members send it trains for all of them."""

    def __init__(self, cell: Cell, dataset: Dataset, index: int) -> None:
        super().__init__(cell, dataset, index)
        self._federation = Federation(cell, dataset)

    def _model(self, base: Floats, number: int) -> Floats:
        federation, honest = self._federation, self._cell.members - self._cell.malicious
        federation.weights = base
        federation.conclude(federation.updates(number), number)
        own: Floats = federation.pretended[self._index - honest]
        return own
