"""The Shapley value of each update in the game "how well does the mean of a coalition point".

Exact integers and fractions of the Gram matrix; the order of the updates changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import comb, isqrt

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.exact import Aggregate

EXACT_UPDATES = 16
"""Up to so many updates every coalition is counted: 2^16 of them."""
SAMPLED_ORDERS = 4096
"""Beyond, the value is the mean over at least so many orders in which the updates join."""

_ONE = 1 << 30
"""A cosine of one: coalition values are whole numbers of 2^-30."""
_FACTOR = 1 << 32
_DOMAIN = b"folkmoot/shapley/1"


@dataclass(frozen=True, slots=True)
class CosineGame:
    """v(S) = cos(sum of S, A): how well the mean of a coalition points where the aggregate A points.

    gram[i][j] = <u_i, u_j>, products[i] = <u_i, A>, square = |A|^2, each in any unit in which they agree.
    The empty coalition, and one whose sum is zero, is worth 0; so is everything when A is zero.
    """

    gram: Sequence[Sequence[int]]
    products: Sequence[int]
    square: int

    @classmethod
    def of(cls, aggregate: Aggregate) -> CosineGame:
        """The game of updates x_i scaled down to at most the median norm r (the lower one of two).

        u_i = c_i x_i / 2^32 with c_i = floor(2^32 min(1, r / |x_i|)), here in units of 2^-32: a liar of a
        thousand times the norm pulls a coalition no further than the median member.
        """
        norms = [aggregate.gram.entries[index][index] for index in range(aggregate.gram.size)]
        bound = sorted(norms)[(len(norms) - 1) // 2]
        factors = [isqrt(_FACTOR * _FACTOR * bound // n) if n > bound else _FACTOR for n in norms]
        return cls(
            tuple(
                tuple(own * other * entry for other, entry in zip(factors, row, strict=True))
                for own, row in zip(factors, aggregate.gram.entries, strict=True)
            ),
            tuple(own * product for own, product in zip(factors, aggregate.products, strict=True)),
            aggregate.square,
        )

    def cosine(self, product: int, norm: int) -> int:
        """The cosine with A, in units of 2^-30 rounded towards zero, of a sum s with <s, A> and |s|^2."""
        if product == 0 or norm == 0 or self.square == 0:
            return 0
        size = min(_ONE, isqrt(_ONE * _ONE * product * product // (norm * self.square)))
        return size if product > 0 else -size

    def all_coalitions(self) -> list[int]:
        """v of every coalition in units of 2^-30; update i belongs to entry k where bit i of k is set."""
        products, norms = [0], [0]
        for index, row in enumerate(self.gram):
            cross = [0]
            for entry in row[:index]:
                cross += [value + 2 * entry for value in cross]
            products += [value + self.products[index] for value in products]
            norms += [norm + row[index] + value for norm, value in zip(norms, cross, strict=True)]
        return [self.cosine(product, norm) for product, norm in zip(products, norms, strict=True)]


def shapley_values(game: CosineGame) -> tuple[Fraction, ...]:
    """phi_i = mean, over the orders in which n updates can join, of what v gains when i joins (Shapley 1953).

    As a measure of data: Ghorbani and Zou 2019; of members in federated learning: Wang et al. 2020; with
    the cosine as the value of a coalition: Xu et al. 2021. The values sum to v(everybody), equal updates
    have equal values, and an update of zeros has 0.

    n <= 16: exact, from all coalitions. Beyond: an unbiased estimate that everybody computes alike, from
    B = ceil(4096 / n) seeded orders and all n rotations of each, so that every update joins at every place
    equally often. The seed is the SHA-256 of the game, which nobody knows before the last update is open.
    Each of the B independent estimates lies in [-2, 2], so (Hoeffding) P(|error| >= t) <= 2 exp(-B t^2 / 8);
    that bound knows nothing of the updates and is far above the usual error.
    """
    if len(game.products) <= EXACT_UPDATES:
        return exact_values(game.all_coalitions())
    return sampled_values(game, -(-SAMPLED_ORDERS // len(game.products)))


def exact_values(coalitions: Sequence[int]) -> tuple[Fraction, ...]:
    """Shapley values, in units of 2^-30, of the game whose 2^n coalitions are listed by bit mask.

    phi_i = 1/n sum_k (sum over S without i, |S| = k, of v(S + i) - v(S)) / C(n - 1, k).
    """
    count = len(coalitions).bit_length() - 1
    # A gain is at most 2^31, and at most C(15, 7) < 2^13 of them have one size: their sums fit int64.
    values = np.array(coalitions, np.int64)
    sizes = np.zeros(1, np.int64)
    for _ in range(count - 1):
        sizes = np.concatenate([sizes, sizes + 1])
    return tuple(_exact_value(values.reshape(-1, 2, 1 << index), sizes, count) for index in range(count))


def _exact_value(halves: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], count: int) -> Fraction:
    by_size = np.zeros(count, np.int64)
    np.add.at(by_size, sizes, (halves[:, 1] - halves[:, 0]).reshape(-1))
    total = sum(
        (Fraction(int(gain), comb(count - 1, size)) for size, gain in enumerate(by_size)), Fraction(0)
    )
    return total / (count * _ONE)


def sampled_values(game: CosineGame, orders: int) -> tuple[Fraction, ...]:
    """Estimated Shapley values from `orders` seeded orders with all their rotations; see `shapley_values`.

    Updates of equal Gram rows are the same update, and share the mean of what they gained.
    """
    count = len(game.products)
    gains = [0] * count
    for order in _seeded_orders(game, orders):
        _add_rotations(game, order, gains)
    twins: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(game.gram):
        twins.setdefault(tuple(row), []).append(index)
    values = [Fraction(0)] * count
    for group in twins.values():
        shared = Fraction(sum(gains[index] for index in group), len(group) * orders * count * _ONE)
        for index in group:
            values[index] = shared
    return tuple(values)


def _add_rotations(game: CosineGame, order: Sequence[int], gains: list[int]) -> None:
    count = len(order)
    twice = [*order, *order]
    # Differences of running sums along the doubled order give <u_i, sum of a window> at once.
    running = [list(accumulate((row[other] for other in twice), initial=0)) for row in game.gram]
    for start in range(count):
        product = norm = last = 0
        for place in range(start, start + count):
            joining = twice[place]
            sums = running[joining]
            product += game.products[joining]
            norm += game.gram[joining][joining] + 2 * (sums[place] - sums[start])
            value = game.cosine(product, norm)
            gains[joining] += value - last
            last = value


def _seeded_orders(game: CosineGame, orders: int) -> list[list[int]]:
    keys = [
        _sha256(game.gram[index][index], product, *sorted(game.gram[index]))
        for index, product in enumerate(game.products)
    ]
    canonical = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    seed = hashlib.sha256(_DOMAIN + _sha256(game.square) + b"".join(sorted(keys))).digest()
    found = []
    for number in range(orders):
        tickets = [hashlib.sha256(seed + _sha256(number, rank)).digest() for rank in range(len(keys))]
        found.append([canonical[rank] for rank in sorted(range(len(keys)), key=tickets.__getitem__)])
    return found


def _sha256(*numbers: int) -> bytes:
    # In hexadecimal, since the time to write a long integer in decimal grows with its square.
    return hashlib.sha256(",".join(f"{number:x}" for number in numbers).encode("ascii")).digest()
