"""Whether cells fit their data: what only a look at the examples can tell, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from folkmoot.aggregation import AggregationError, AttackTarget
from folkmoot.experiments.cells import Cell, ImpossibleCell
from folkmoot.experiments.federation import (
    initial_network,
    initial_weights,
    layout_of,
    local_training,
    measure,
    member_shares,
    require_device,
    stamped,
)
from folkmoot.node.datasets import Dataset, DatasetError

__all__ = ["require_fit"]

_BATCH = 4
"""Examples that a model is tried on."""


def require_fit(cells: Iterable[Cell], dataset: Callable[[str], Dataset]) -> None:
    """Train every model for one step, divide every data set, and try every trigger, once each.

    dataset: gives a data set by name. Raises ImpossibleCell, DatasetError.
    """
    seen: set[object] = set()
    for cell in cells:
        training = cell.training
        for subject, check in (
            ((cell.model, training.precision, training.engine, training.device), _require_model),
            ((cell.partition, cell.members, cell.sharers, cell.seed), _require_shares),
            ((cell.attack,), _require_trigger),
        ):
            if (cell.data, check, subject) not in seen:
                seen.add((cell.data, check, subject))
                check(cell, dataset(cell.data))


def _require_model(cell: Cell, dataset: Dataset) -> None:
    require_device(cell)
    network = initial_network(cell, dataset)
    few = dataset.train.take(np.arange(_BATCH))
    once = replace(cell, training=replace(cell.training, steps=1, epochs=0.0, batch=_BATCH))
    try:
        trained = local_training(once, dataset, [few], [0]).train(initial_weights(network), 0)
        measure(cell, network, layout_of(network), trained[0], few)
    except Exception as error:
        # The network may be the user's own.
        raise ImpossibleCell(
            f"model {cell.model.label!r} does not train: {type(error).__name__}: {error}"
        ) from error


def _require_shares(cell: Cell, dataset: Dataset) -> None:
    try:
        member_shares(cell, dataset)
    except DatasetError as error:
        raise ImpossibleCell(f"{cell.data}, {cell.partition.label}: {error}") from None


def _require_trigger(cell: Cell, dataset: Dataset) -> None:
    if cell.attack.target is not AttackTarget.EXAMPLES:
        return
    try:
        stamped(cell, dataset.train.take(np.arange(1)), dataset.classes, 0)
    except AggregationError as error:
        raise ImpossibleCell(f"attack {cell.attack.label} on {cell.data}: {error}") from None
