"""What is done to the updates before a rule sees them. Each is a matrix that mixes them: exact integers."""

from __future__ import annotations

import hashlib
import struct
from math import lcm

from folkmoot.aggregation.averaging_rules import shrink_factor
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.plans import FINE, Mixing, reduced_mixing
from folkmoot.aggregation.selection_rules import nearest

_BUCKET_DOMAIN = b"folkmoot/buckets/1"


def nnm(gram: Gram, f: int) -> Mixing:
    """Nearest-neighbour mixing: y_i is the mean of the n - f updates nearest to x_i, itself among them.

    Allouah et al. 2023. Ties go to the lower index.
    """
    kept = gram.size - f
    rows = []
    for distances in gram.squared_distances():
        members = set(nearest(distances, kept))
        rows.append(tuple(int(index in members) for index in range(gram.size)))
    return Mixing(tuple(rows), kept)


def bucketing(count: int, size: int, seed: bytes) -> Mixing:
    """Means of buckets of `size` updates, the last one perhaps smaller, in an order that the seed decides.

    Karimireddy, He, Jaggi 2022; ByzFL likewise. f liars spoil at most f buckets. The order is that of
    SHA-256(seed, index), so whoever knows neither beforehand chooses no bucket.
    """
    order = sorted(range(count), key=lambda index: _shuffled(seed, index))
    buckets = [order[start : start + size] for start in range(0, count, size)]
    denominator = lcm(*(len(bucket) for bucket in buckets))
    rows = []
    for bucket in buckets:
        row = [0] * count
        for index in bucket:
            row[index] = denominator // len(bucket)
        rows.append(tuple(row))
    return Mixing(tuple(rows), denominator)


def _shuffled(seed: bytes, index: int) -> bytes:
    return hashlib.sha256(_BUCKET_DOMAIN + struct.pack("<II", len(seed), index) + seed).digest()


def clipping(gram: Gram, tau: int) -> Mixing:
    """x_i shortened to at most the length tau, in millionths; factors are floored to 2^-32."""
    numerator, denominator = gram.squared(tau)
    return _scaled([shrink_factor(numerator, denominator, square) for square in gram.norms])


def arc(gram: Gram, f: int) -> Mixing:
    """Adaptive robust clipping: the k = floor(2 f (n - f) / n) longest are shortened to the next norm.

    Allouah et al. 2025. Of equally long ones those with the higher index count as longer.
    """
    count, norms = gram.size, gram.norms
    clipped = 2 * f * (count - f) // count
    order = sorted(range(count), key=lambda index: (norms[index], index))
    bound = norms[order[count - clipped - 1]]
    longer = set(order[count - clipped :])
    return _scaled(
        [shrink_factor(bound, 1, norm) if index in longer else FINE for index, norm in enumerate(norms)]
    )


def _scaled(factors: list[int]) -> Mixing:
    count = len(factors)
    return reduced_mixing(
        [[factor if i == j else 0 for j in range(count)] for i, factor in enumerate(factors)], FINE
    )
