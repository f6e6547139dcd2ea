"""Whether cells fit their data: what only a look at the examples can tell, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from folkmoot.aggregation import AggregationError, AttackTarget
from folkmoot.experiments.cells import Cell, ImpossibleCell
from folkmoot.experiments.federation import initial_network, member_shares, stamped
from folkmoot.node.datasets import Dataset, DatasetError

__all__ = ["require_fit"]


def require_fit(cells: Iterable[Cell], dataset: Callable[[str], Dataset]) -> None:
    """Build every model, divide every data set, and try every trigger, once each.

    dataset: gives a data set by name. Raises ImpossibleCell, DatasetError, PartitionError.
    """
    seen: set[object] = set()
    for cell in cells:
        for subject, check in (
            ((cell.data, cell.model), _require_model),
            ((cell.data, cell.partition, cell.members, cell.malicious, cell.seed), _require_shares),
            ((cell.data, cell.attack), _require_trigger),
        ):
            if subject not in seen:
                seen.add(subject)
                check(cell, dataset(cell.data))


def _require_model(cell: Cell, dataset: Dataset) -> None:
    initial_network(cell, dataset)


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
