"""From encoded updates to the exact aggregate: integers and their common denominator, before any float."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.backend import load_backend
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.lattice import Lattice
from folkmoot.aggregation.layout import Layout
from folkmoot.aggregation.passes import MAX_CHUNK, Passes
from folkmoot.aggregation.plans import Combination
from folkmoot.aggregation.rules import GramRule, RuleSpec, require_enough
from folkmoot.aggregation.sources import Source, open_updates

_DIGEST_DOMAIN = b"folkmoot/aggregate/1"


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """A rule's exact output: the value i of tensor t is numerators[i] * 2^exponents[t] / denominator.

    Two aggregates are the same when their digests are.
    """

    numerators: npt.NDArray[np.int64]
    """Shape (layout.size,), read-only, each at most M * denominator in absolute value."""
    denominator: int
    """1 to 2^32."""
    rule_weights: tuple[int, ...] | None
    """For a combination of updates their weights over `denominator`; None for order statistics."""
    gram: Gram
    """Exact inner products of the n updates."""
    products: tuple[int, ...]
    """<numerators, x_i> for each update, in the unit of `gram`."""
    square: int
    """<numerators, numerators>, in the unit of `gram`."""

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over denominator, count and numerators, little-endian."""
        state = hashlib.sha256(_DIGEST_DOMAIN + struct.pack("<QQ", self.denominator, self.numerators.size))
        state.update(np.ascontiguousarray(self.numerators, "<i8").data)
        return state.digest()


def aggregate_updates(
    sources: Sequence[Source],
    layout: Layout,
    lattice: Lattice,
    rule: RuleSpec,
    *,
    weights: Sequence[int] | None = None,
    backend: str = "numpy",
    threads: int = 1,
    chunk: int = MAX_CHUNK,
) -> Aggregate:
    """Aggregate n updates (encoded files, or integer arrays of shape (layout.size,)) exactly.

    weights: the examples that each update claims; only weighted-mean reads them. backend: "numpy" or "torch".
    threads: column ranges worked on at once. chunk: columns read at a time, at most 65,536. The last three
    change speed and memory (n * chunk integers a thread), never the result. A permutation of `sources`
    permutes weights, Gram matrix and products alike, up to ties in Krum scores, which go to the lower index.

    Raises TooFewUpdates, WeightsInvalid, BoundExceeded, BackendUnavailable, LatticeInvalid, and the
    UpdateError of a source, which names its index.
    """
    require_enough(rule, len(sources))
    passes = Passes(load_backend(backend), threads, chunk)
    parameters = dict(rule.params)
    with open_updates(sources, layout, lattice) as reader:
        definition = rule.rule
        if isinstance(definition, GramRule):
            gram = passes.gram(reader)
            combination = definition.combine(gram, rule.f, parameters)
            return _combined(passes.sum(reader, combination), combination, gram)
        plan = definition.plan(len(sources), rule.f, parameters, weights)
        gram, numerators = passes.gram_and_sum(reader, plan)
        if isinstance(plan, Combination):
            return _combined(numerators, plan, gram)
        return _ranked(numerators, plan.denominator, gram)


def _combined(numerators: npt.NDArray[np.int64], plan: Combination, gram: Gram) -> Aggregate:
    products = tuple(
        sum(weight * entry for weight, entry in zip(plan.weights, row, strict=True)) for row in gram.entries
    )
    square = sum(weight * product for weight, product in zip(plan.weights, products, strict=True))
    numerators.flags.writeable = False
    return Aggregate(numerators, plan.denominator, plan.weights, gram, products, square)


def _ranked(numerators: npt.NDArray[np.int64], denominator: int, bordered: Gram) -> Aggregate:
    inner = tuple(row[:-1] for row in bordered.entries[:-1])
    *products, square = bordered.entries[-1]
    numerators.flags.writeable = False
    return Aggregate(numerators, denominator, None, Gram(inner, bordered.exponent), tuple(products), square)
