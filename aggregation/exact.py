"""From encoded updates to the exact aggregate: integers and their common denominator, before any float."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.backend import load_backend
from folkmoot.aggregation.case import Case, Looks
from folkmoot.aggregation.errors import BoundExceeded, ReferenceMissing
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.lattice import Lattice
from folkmoot.aggregation.layout import Layout
from folkmoot.aggregation.passes import Passes
from folkmoot.aggregation.plans import MAX_UPDATES, Combination, Decision
from folkmoot.aggregation.rules import PREAGGREGATORS, RuleSpec, require_enough
from folkmoot.aggregation.sources import Source, UpdateReader, open_updates

_DIGEST_DOMAIN = b"folkmoot/aggregate/1"


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """A rule's exact output: the value i of tensor t is numerators[i] * 2^exponents[t] / denominator.

    Two are the same when their digests are.
    """

    numerators: npt.NDArray[np.int64]
    """Shape (layout.size,), read-only, each at most M * denominator in absolute value."""
    denominator: int
    """1 to 2^32."""

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over denominator, count and numerators, little-endian."""
        state = hashlib.sha256(_DIGEST_DOMAIN + struct.pack("<QQ", self.denominator, self.numerators.size))
        state.update(np.ascontiguousarray(self.numerators, "<i8").data)
        return state.digest()


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate(Average):
    """A rule's exact output with what scores look at."""

    rule_weights: tuple[int, ...] | None
    """For a combination of updates their weights over `denominator`; None for order statistics."""
    gram: Gram
    """Exact inner products of the n updates."""
    products: tuple[int, ...]
    """<numerators, x_i> for each update, in the unit of `gram`."""
    square: int
    """<numerators, numerators>, in the unit of `gram`."""


def aggregate_updates(
    sources: Sequence[Source],
    layout: Layout,
    lattice: Lattice,
    rule: RuleSpec,
    *,
    weights: Sequence[int] | None = None,
    seed: bytes = b"",
    reference: Source | None = None,
    backend: str = "numpy",
    threads: int = 1,
    chunk: int | None = None,
) -> Aggregate:
    """Aggregate n updates (encoded files, or integer arrays of shape (layout.size,)) exactly.

    weights: the examples that each update claims, for rules with a cap. seed: orders the buckets of
    bucketing. reference: the aggregate before this one on this lattice, for centered-clipping with history.
    backend: "auto" or one of BACKENDS. threads: column ranges worked on at once. chunk: columns read at a
    time. The last three change speed and memory (n * chunk integers a thread), never the result. A
    permutation of `sources` permutes weights, Gram matrix and products alike, up to ties, which go to the
    lower index, and the pivot and buckets, which go by index.

    Raises TooFewUpdates, WeightsInvalid, ReferenceMissing, SearchTooHard, BoundExceeded, BackendUnavailable,
    LatticeInvalid, and the UpdateError of a source, which names its index.
    """
    passes = Passes(load_backend(backend), threads, chunk)
    with _opened(sources, reference, layout, lattice, rule) as reader:
        count = len(sources)
        gram: Gram | None = None
        if rule.looks_at is not Looks.NOTHING:
            gram = passes.gram(reader)
        decision = decide(rule, count, weights, seed, gram)
        if isinstance(decision.plan, Combination):
            if gram is None:
                gram, numerators = passes.gram_and_sum(reader, decision)
            else:
                numerators = passes.sum(reader, decision)
            return _combined(numerators, decision.plan, gram, count)
        bordered, numerators = passes.gram_and_sum(reader, decision)
        return _ranked(numerators, decision.denominator, bordered, count)


def average_updates(
    sources: Sequence[Source],
    layout: Layout,
    lattice: Lattice,
    rule: RuleSpec,
    *,
    weights: Sequence[int] | None = None,
    seed: bytes = b"",
    reference: Source | None = None,
    backend: str = "numpy",
    threads: int = 1,
    chunk: int | None = None,
) -> Average:
    """The same numerators and denominator as `aggregate_updates`, for when nothing is scored.

    Arguments and errors are the same. Takes no Gram matrix that the rule does not look at.
    """
    passes = Passes(load_backend(backend), threads, chunk)
    with _opened(sources, reference, layout, lattice, rule) as reader:
        decision = decide(rule, len(sources), weights, seed, _looked_at(passes, reader, rule))
        numerators = passes.sum(reader, decision)
        numerators.flags.writeable = False
        return Average(numerators, decision.denominator)


def aggregate_values(
    sources: Sequence[Source],
    layout: Layout,
    lattice: Lattice,
    rule: RuleSpec,
    *,
    weights: Sequence[int] | None = None,
    seed: bytes = b"",
    reference: Source | None = None,
    backend: str = "auto",
    threads: int = 1,
    chunk: int | None = None,
) -> npt.NDArray[np.float32]:
    """The aggregate as float32 of shape (layout.size,): numerator / denominator * 2^exponent, rounded.

    Arguments and errors as for `aggregate_updates`, whose numerators it rounds: the quotient to float64, then
    to float32, both correctly, so the same bytes everywhere. Takes no Gram matrix that the rule does not look
    at, and holds no more than the result and n * chunk integers a thread.
    """
    passes = Passes(load_backend(backend), threads, chunk)
    values, _ = values_and_decision(
        sources, layout, lattice, rule, passes, weights=weights, seed=seed, reference=reference
    )
    return values


def values_and_decision(
    sources: Sequence[Source],
    layout: Layout,
    lattice: Lattice,
    rule: RuleSpec,
    passes: Passes,
    *,
    weights: Sequence[int] | None = None,
    seed: bytes = b"",
    reference: Source | None = None,
) -> tuple[npt.NDArray[np.float32], Decision]:
    """What `aggregate_values` gives, and what the rule decided to take of the columns."""
    with _opened(sources, reference, layout, lattice, rule) as reader:
        gram = _looked_at(passes, reader, rule)
        decision = decide(rule, len(sources), weights, seed, gram)
        return passes.values(reader, decision, seen=gram is not None), decision


def _looked_at(passes: Passes, reader: UpdateReader, rule: RuleSpec) -> Gram | None:
    """As much of the Gram matrix as the rule needs."""
    if rule.looks_at is Looks.DISTANCES:
        return passes.gram(reader)
    if rule.looks_at is Looks.ROW:
        return passes.gram_of_row(reader, rule.parameters().get("pivot", 0))
    return None


def _opened(
    sources: Sequence[Source], reference: Source | None, layout: Layout, lattice: Lattice, rule: RuleSpec
) -> AbstractContextManager[UpdateReader]:
    if len(sources) > MAX_UPDATES:
        raise BoundExceeded(f"{len(sources)} updates, expected 1 to {MAX_UPDATES}")
    require_enough(rule, len(sources))
    if rule.needs_reference and reference is None:
        raise ReferenceMissing(
            f"{rule.name} with history = 1 starts from the aggregate before this one; give it as reference"
        )
    everything = [*sources, reference] if rule.needs_reference and reference is not None else sources
    return open_updates(everything, layout, lattice)


def decide(
    rule: RuleSpec, count: int, weights: Sequence[int] | None, seed: bytes, gram: Gram | None
) -> Decision:
    """What to take of the columns: pre-aggregators in their order, then the rule on the rows they make.

    gram: of the updates and, when the rule needs it, the reference; None when nothing looks at it.
    """
    mixing, products, rows = None, gram, count
    for entry in rule.pre:
        step = PREAGGREGATORS[entry.name].mix(_rows_of(products, rows), rule.f, dict(entry.params), seed)
        mixing = step if mixing is None else step.after(mixing)
        rows = len(step.rows)
        if gram is not None:
            whole = mixing.reaches_past(gram.size) if gram.size > count else mixing
            products = gram.mixed(whole.rows, whole.denominator)
    claims = None if weights is None else tuple(weights)
    decision = rule.rule.decide(Case(rows, rule.f, rule.parameters(), claims, products))
    if mixing is None:
        return decision
    if isinstance(decision.plan, Combination):
        whole = mixing.reaches_past(gram.size) if gram is not None and gram.size > count else mixing
        return Decision(whole.fold(decision.plan))
    return Decision(decision.plan, mixing if decision.mixing is None else decision.mixing.after(mixing))


def _rows_of(products: Gram | None, rows: int) -> Gram:
    if products is None:
        # Only bucketing goes without distances, and it looks at nothing but the number of rows.
        return Gram(((),) * rows, 0)
    return products if products.size == rows else products.first(rows)


def _combined(numerators: npt.NDArray[np.int64], plan: Combination, gram: Gram, count: int) -> Aggregate:
    products = tuple(
        sum(weight * entry for weight, entry in zip(plan.weights, row, strict=True)) for row in gram.entries
    )
    square = sum(weight * product for weight, product in zip(plan.weights, products, strict=True))
    numerators.flags.writeable = False
    return Aggregate(numerators, plan.denominator, plan.weights, gram.first(count), products[:count], square)


def _ranked(numerators: npt.NDArray[np.int64], denominator: int, bordered: Gram, count: int) -> Aggregate:
    *products, square = bordered.entries[-1]
    numerators.flags.writeable = False
    return Aggregate(numerators, denominator, None, bordered.first(count), tuple(products[:count]), square)
