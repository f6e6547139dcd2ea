"""What happens to the members' updates in a round: lattice, rule, model step, as nodes do it, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from folkmoot.aggregation import (
    Average,
    Lattice,
    Layout,
    RuleSpec,
    aggregate_updates,
    aggregate_values,
    average_updates,
    next_exponents,
    quantize,
    quantize_and_measure,
)
from folkmoot.aggregation.attacks import Defence
from folkmoot.aggregation.backend import chosen_backend
from folkmoot.aggregation.errors import NotFinite, SearchTooHard, TooFewUpdates, WeightsInvalid
from folkmoot.aggregation.lattice import LatticeIntegers
from folkmoot.contracts.types import max_faulty
from folkmoot.node.conclude import Aggregator, Arithmetic, combine

__all__ = ["Applied", "Exchange", "LatticeExchange"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A round's end. `aggregate` is None when the rule could not aggregate what there was; it is an Aggregate
    where scores are wanted."""

    weights: Floats
    included: tuple[int, ...]
    """Rows of the updates that could be put on the lattice, in order."""
    aggregate: Average | None


class Exchange(Protocol):
    """From the updates of a round to the next model."""

    def apply(self, weights: Floats, updates: Floats, examples: Sequence[int], round_number: int) -> Applied:
        """The next model from the updates (n, d), in order of member, and the examples that each claims."""

    def foreseen(self, examples: Sequence[int], malicious: int) -> Defence:
        """What this round's aggregate (d,) would be, for liars who try their lies.

        Call it with updates (n, d) whose first n - malicious rows are the same every time.
        """


class LatticeExchange:
    """One task's lattice from round to round. Calls must follow the rounds in order.

    It works on as many threads as PyTorch may use; no byte depends on that.
    """

    def __init__(
        self,
        layout: Layout,
        rule: RuleSpec,
        members: int,
        bits: int,
        exponent: int,
        seed: int,
        *,
        scored: bool,
    ) -> None:
        self._aggregator: Aggregator[Average] = aggregate_updates if scored else average_updates
        self._layout, self._rule, self._seed = layout, rule, seed
        self._faulty = max_faulty(members)
        self.lattice = Lattice(bits, (exponent,) * len(layout.tensors))

    def apply(
        self,
        weights: Floats,
        updates: Floats,
        examples: Sequence[int],
        round_number: int,
    ) -> Applied:
        """An update with NaN or infinity is left out, as an honest node refuses to send it."""
        threads = torch.get_num_threads()
        if threads == 1:
            encoded = [self._encoded(update) for update in updates]
        else:
            with ThreadPoolExecutor(threads) as pool:
                encoded = list(pool.map(self._encoded, updates))
        included = [index for index, row in enumerate(encoded) if row is not None]
        rows = [row[0] for row in encoded if row is not None]
        published = [row[1] for row in encoded if row is not None]
        aggregate, _, weights = combine(
            self._aggregator,
            rows,
            weights,
            self._rule,
            self._layout,
            self.lattice,
            examples=[examples[index] for index in included],
            seed=self._bucket_seed(round_number),
            arithmetic=Arithmetic(chosen_backend("auto"), threads),
        )
        exponents = next_exponents(published, self._faulty, self.lattice)
        self.lattice = Lattice(self.lattice.bits, exponents)
        return Applied(weights, tuple(included), aggregate)

    def _encoded(self, update: Floats) -> tuple[LatticeIntegers, tuple[int, ...]] | None:
        """The update on the lattice and the exponents that it needs; None when it is not finite."""
        try:
            return quantize_and_measure(update, self._layout, self.lattice)
        except NotFinite:
            return None

    def foreseen(self, examples: Sequence[int], malicious: int) -> Defence:
        """The rule on this round's lattice, with buckets by a seed of the liars' own."""
        known: list[LatticeIntegers] = []

        def defend(updates: Floats) -> Floats:
            honest = len(updates) - malicious
            if not known:
                known.extend(quantize(update, self._layout, self.lattice) for update in updates[:honest])
            lies = [quantize(update, self._layout, self.lattice) for update in updates[honest:]]
            weighted = "cap" in dict(self._rule.params)
            try:
                return aggregate_values(
                    [*known, *lies],
                    self._layout,
                    self.lattice,
                    self._rule,
                    weights=examples if weighted else None,
                )
            except (TooFewUpdates, WeightsInvalid, SearchTooHard):
                # The round would leave the model as it is.
                return np.zeros(self._layout.size, np.float32)

        return defend

    def _bucket_seed(self, round_number: int) -> bytes:
        return hashlib.sha256(f"folkmoot/experiment/{self._seed}/{round_number}".encode()).digest()
