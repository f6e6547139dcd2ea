"""Rules that look at the direction in which the updates vary most.

Floats here are float64 with + - * / and square roots in a fixed order, elementwise over the members, so the
same Gram matrix gives the same weights on every processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, islice
from math import comb

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.case import Case
from folkmoot.aggregation.errors import SearchTooHard
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.plans import FINE, Decision, reduced, selection

Floats = npt.NDArray[np.float64]

CAF_STEPS = 32
"""Power steps for each direction."""
SMEA_STEPS = 64
SMEA_SUBSETS = 1 << 17
"""Most subsets that SMEA looks at: all of 20 members with f = 7, of 25 with f = 5."""
_BATCH = 1 << 12


def caf(case: Case) -> Decision:
    """Covariance-bound agnostic filter (Allouah, Guerraoui, Stephan 2025, algorithm 2).

    Weights c_i start at 1. While sum c > n - 2f: mu = sum c_i x_i / sum c; the largest eigenvalue of the
    weighted covariance, with direction u; t_i = <x_i - mu, u>^2; c_i <- c_i (1 - t_i / max t). The result is
    the mu with the smallest eigenvalue. The direction comes from 32 power steps that start at the update
    farthest from mu; ByzFL takes one step from a random vector. Weights are floored to 2^-32.
    """
    centred = _centred_products(case.gram)
    weights = np.ones(case.count)
    best, smallest = weights, np.inf
    while _sum(weights) > case.count - 2 * case.f:
        total = _sum(weights)
        eigenvalue, squares = _principal(_recentred(centred, weights / total), weights / total)
        if eigenvalue < smallest:
            best, smallest = weights, eigenvalue
        peak = float(np.max(np.where(weights > 0.0, squares, 0.0)))
        if peak == 0.0:
            break
        weights = np.maximum(weights * (1.0 - squares / peak), 0.0)
    integers = [int(weight) for weight in np.floor(best * FINE)]
    if not any(integers):
        integers = [1] * case.count
    return Decision(reduced(integers, sum(integers)))


def smea(case: Case) -> Decision:
    """Smallest maximum eigenvalue averaging: the mean of the n - f updates that vary least in any direction.

    Allouah et al. 2023: the subset whose covariance has the smallest largest eigenvalue, of equal ones the
    first in lexicographic order of indices. The eigenvalue is the Rayleigh quotient after 64 power steps
    from the member farthest from the subset's mean. All subsets are looked at, at most 131,072: raises
    SearchTooHard beyond.
    """
    count, kept = case.count, case.count - case.f
    if comb(count, kept) > SMEA_SUBSETS:
        raise SearchTooHard(
            f"smea: {count} updates with f = {case.f} have {comb(count, kept)} subsets, of which at most "
            f"{SMEA_SUBSETS} are searched; use caf, or fewer members"
        )
    centred = _centred_products(case.gram)
    chosen, smallest = tuple(range(kept)), np.inf
    subsets = combinations(range(count), kept)
    while batch := list(islice(subsets, _BATCH)):
        eigenvalues = _largest_eigenvalues(centred, np.array(batch))
        first = int(np.argmin(eigenvalues))
        if eigenvalues[first] < smallest:
            chosen, smallest = batch[first], float(eigenvalues[first])
    return Decision(selection(chosen, count))


def _centred_products(gram: Gram) -> Floats:
    """<x_i - m, x_j - m> for the mean m, divided by the largest: exact integers, then one rounding each."""
    count, entries = gram.size, gram.entries
    sums = [sum(row) for row in entries]
    whole = sum(sums)
    exact = [
        [
            count * count * entry - count * (own + other) + whole
            for entry, other in zip(row, sums, strict=True)
        ]
        for row, own in zip(entries, sums, strict=True)
    ]
    peak = max(exact[index][index] for index in range(count)) or 1
    # Python divides integers of any size with one correct rounding.
    return np.array([[entry / peak for entry in row] for row in exact])


def _sum(values: Floats) -> float:
    total = 0.0
    for value in values.tolist():
        total += value
    return total


def _times(matrix: Floats, vector: Floats) -> Floats:
    """matrix @ vector, column after column."""
    total = np.zeros(matrix.shape[0])
    for column, factor in zip(matrix.T, vector.tolist(), strict=True):
        if factor:
            total += column * factor
    return total


def _recentred(products: Floats, weights: Floats) -> Floats:
    """Products of x_i - mu with mu = sum weights_j x_j, sum weights = 1."""
    towards = _times(products, weights)
    square = _sum(weights * towards)
    return products - towards[:, None] - towards[None, :] + square


def _principal(products: Floats, weights: Floats) -> tuple[float, Floats]:
    """The largest eigenvalue of sum_i weights_i y_i y_i^T and <y_i, u>^2 for its direction u."""
    direction = np.zeros(len(weights))
    direction[int(np.argmax(np.where(weights > 0.0, np.diagonal(products), -1.0)))] = 1.0
    eigenvalue = 0.0
    for _ in range(CAF_STEPS):
        # u = sum_i a_i y_i; the covariance times u is sum_i weights_i <y_i, u> y_i.
        onto = _times(products, direction)
        length = _sum(direction * onto)
        if length <= 0.0:
            return 0.0, np.zeros(len(weights))
        direction = weights * onto
        eigenvalue = _sum(direction * onto) / length
        direction = direction / np.sqrt(_sum(direction * direction))
    onto = _times(products, direction)
    length = _sum(direction * onto)
    if length <= 0.0:
        return 0.0, np.zeros(len(weights))
    return eigenvalue, onto * onto / length


def _largest_eigenvalues(products: Floats, subsets: npt.NDArray[np.int64]) -> Floats:
    """Of each subset the largest eigenvalue of its centred products; subsets (s, k), result (s,)."""
    count, kept = subsets.shape
    matrices = products[subsets[:, :, None], subsets[:, None, :]]
    means = _added(matrices, 2) / kept
    middle = _added(means, 1) / kept
    matrices = matrices - means[:, :, None] - means[:, None, :] + middle[:, None, None]
    vectors = np.zeros((count, kept))
    diagonals = matrices[:, np.arange(kept), np.arange(kept)]
    vectors[np.arange(count), diagonals.argmax(axis=1)] = 1.0
    eigenvalues = np.zeros(count)
    for _ in range(SMEA_STEPS):
        images = np.zeros_like(vectors)
        for column in range(kept):
            images += matrices[:, :, column] * vectors[:, column, None]
        eigenvalues = _added(images * vectors, 1)
        lengths = np.sqrt(_added(images * images, 1))
        vectors = images / np.where(lengths > 0.0, lengths, 1.0)[:, None]
    return eigenvalues


def _added(values: Floats, axis: int) -> Floats:
    """The sum along an axis, one slice after the other."""
    slices: Sequence[Floats] = list(np.moveaxis(values, axis, 0))
    total = slices[0].copy()
    for part in slices[1:]:
        total += part
    return total
