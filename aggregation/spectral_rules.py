"""Rules that look at the direction in which the updates vary most.

Floats here are float64 with + - * / and square roots in a fixed order, elementwise over the members, so the
same Gram matrix gives the same weights on every processor.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.case import Case
from folkmoot.aggregation.eigen import added, largest_eigenpairs, times
from folkmoot.aggregation.errors import SearchTooHard
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.plans import FINE, Decision, reduced, selection

Floats = npt.NDArray[np.float64]

SMEA_STEPS = 1 << 17
"""Eigenvalues of 16 x 16 matrices that one search of SMEA may take, larger ones counting k^2 / 256 each."""
_BETTER = 1.0 - 2.0**-20
"""An eigenvalue is smaller than another when it is below this part of it."""
_AT_ONCE = 64
"""Subsets that are looked at together instead of being searched."""


def caf(case: Case) -> Decision:
    """Covariance-bound agnostic filter (Allouah, Guerraoui, Stephan 2025, algorithm 2).

    Weights c_i start at 1. While sum c > n - 2f: mu = sum c_i x_i / sum c; the largest eigenvalue of the
    weighted covariance, with direction u; t_i = <x_i - mu, u>^2; c_i <- c_i (1 - t_i / max t). The result is
    the mu with the smallest eigenvalue. ByzFL takes u from one power step that starts at a random vector, and
    max t over all updates, not those with c > 0 alone.
    Weights are floored to 2^-32.
    """
    centred = _centred_products(case.gram)
    weights = np.ones(case.count)
    best, smallest = weights, np.inf
    while _sum(weights) > case.count - 2 * case.f:
        shares = weights / _sum(weights)
        eigenvalue, squares = _principal(_recentred(centred, shares), shares)
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

    Allouah et al. 2023: the subset whose covariance has the smallest largest eigenvalue. It begins with the
    subset that is left when the update farthest out in the direction of most variance goes, f times; another
    replaces it when its eigenvalue is smaller by 2^-20 of it. Adding an update never makes the scatter of a
    set smaller, so a set whose scatter exceeds the best is not continued (branch and bound). Raises
    SearchTooHard when the search takes more than 131,072 steps, as it does with many members that all look
    alike.
    """
    search = _SmallestScatter(_centred_products(case.gram), case.count - case.f)
    return Decision(selection(search.run(), case.count))


class _SmallestScatter:
    """The subset of `kept` members whose scatter matrix has the smallest largest eigenvalue."""

    def __init__(self, products: Floats, kept: int) -> None:
        self._products, self._kept = products, kept
        self._steps = 0
        self._order = self._by_suspicion()
        self._best = self._order[len(products) - kept :]
        self._smallest = float(self._eigenvalues([self._best])[0])

    def run(self) -> tuple[int, ...]:
        """Raises SearchTooHard."""
        self._search((), 0)
        return tuple(sorted(self._best))

    def _by_suspicion(self) -> tuple[int, ...]:
        """First those who leave, farthest out first, then the others by index."""
        inside, outside = list(range(len(self._products))), list[int]()
        while len(inside) > self._kept:
            even = np.full(len(inside), 1.0 / len(inside))
            _, squares = _principal(_recentred(self._products[np.ix_(inside, inside)], even), even)
            outside.append(inside.pop(int(np.argmax(squares))))
        return (*outside, *inside)

    def _search(self, chosen: tuple[int, ...], start: int) -> None:
        """Look at every subset that continues `chosen` with members from place `start` of the order."""
        rest, wanted = self._order[start:], self._kept - len(chosen)
        if comb(len(rest), wanted) <= _AT_ONCE:
            self._compare([(*chosen, *more) for more in combinations(rest, wanted)])
            return
        children = [
            ((*chosen, self._order[place]), place + 1)
            for place in range(start, len(self._order) - wanted + 1)
        ]
        bounds = self._eigenvalues([subset for subset, _ in children])
        # From the last on: it leaves out the most suspicious.
        for (subset, after), bound in reversed(list(zip(children, bounds.tolist(), strict=True))):
            if bound < self._smallest * _BETTER:
                self._search(subset, after)

    def _compare(self, subsets: list[tuple[int, ...]]) -> None:
        for subset, value in zip(subsets, self._eigenvalues(subsets).tolist(), strict=True):
            if value < self._smallest * _BETTER:
                self._best, self._smallest = subset, value

    def _eigenvalues(self, subsets: list[tuple[int, ...]]) -> Floats:
        """The largest eigenvalue of the scatter of each of some equally large subsets."""
        size = len(subsets[0])
        self._steps += len(subsets) * max(1, size * size // 256)
        if self._steps > SMEA_STEPS:
            count = len(self._products)
            raise SearchTooHard(
                f"smea: {count} updates with f = {count - self._kept} look so much alike that the search "
                f"among {comb(count, self._kept)} subsets was given up after {SMEA_STEPS} steps; use caf, "
                "or fewer members"
            )
        indices = np.array(subsets)
        matrices = self._products[indices[:, :, None], indices[:, None, :]]
        means = added(matrices, 2) / size
        middle = added(means, 1) / size
        return largest_eigenpairs(matrices - means[:, :, None] - means[:, None, :] + middle[:, None, None])[0]


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
    return float(added(values, 0))


def _recentred(products: Floats, weights: Floats) -> Floats:
    """Products of x_i - mu with mu = sum weights_j x_j, sum weights = 1."""
    towards: Floats = times(products[None], weights[None])[0]
    square = _sum(weights * towards)
    recentred: Floats = products - towards[:, None] - towards[None, :] + square
    return recentred


def _principal(products: Floats, weights: Floats) -> tuple[float, Floats]:
    """The largest eigenvalue of sum_i weights_i y_i y_i^T and <y_i, u>^2 for its direction u."""
    # u = sum_i a_i y_i with a_i = sqrt(weights_i) z_i and z the vector of sqrt(w_i) <y_i, y_j> sqrt(w_j).
    roots = np.sqrt(weights)
    eigenvalues, vectors = largest_eigenpairs((products * roots[:, None] * roots[None, :])[None])
    eigenvalue = float(eigenvalues[0])
    if eigenvalue <= 0.0:
        return 0.0, np.zeros(len(weights))
    onto: Floats = times(products[None], (roots * vectors[0])[None])[0]
    return eigenvalue, onto * onto / eigenvalue
