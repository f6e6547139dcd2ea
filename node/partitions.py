"""Divisions of labelled examples among members: seeded pure functions of the labels, and their registry.

Only divides indices; reads no files and knows nothing of models, rounds or peers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from folkmoot.node.datasets import DatasetError, Indices, Labels

__all__ = [
    "PARTITIONS",
    "Partition",
    "PartitionError",
    "dirichlet",
    "divide",
    "find_partition",
    "gamma_similarity",
    "iid",
    "shards",
]


class PartitionError(DatasetError):
    """The examples cannot be divided as asked."""


def divide(
    kind: str, labels: Labels, members: int, seed: int, parameter: float | None = None
) -> list[Indices]:
    """Divide examples with these labels, int64 (n,), among members by the partition called `kind`.

    The result depends only on the arguments: one ascending int64 array of indices per member, disjoint and
    complete, none empty. parameter: the one that the kind has, None for a kind without. Raises
    PartitionError.
    """
    return find_partition(kind).divide(labels, members, parameter, seed)


def find_partition(kind: str) -> Partition:
    """The partition of this name. Raises PartitionError."""
    try:
        return PARTITIONS[kind]
    except KeyError:
        raise PartitionError(
            f"no partition is called {kind!r}; choose one of {', '.join(PARTITIONS)}"
        ) from None


def iid(labels: Labels, members: int, seed: int) -> list[Indices]:
    """Shuffle the examples and cut them into equal parts; sizes differ by at most one.

    Source: the "IID" division of McMahan, Moore, Ramage, Hampson, Arcas, "Communication-Efficient Learning of
    Deep Networks from Decentralized Data" (2017). Raises PartitionError.
    """
    _check_members(labels, members)
    shuffled = _random(seed).permutation(len(labels))
    return [_ascending(part) for part in np.array_split(shuffled, members)]


def dirichlet(labels: Labels, members: int, alpha: float, seed: int, minimum: int = 8) -> list[Indices]:
    """Divide with label skew: the members' shares of each label are drawn from Dirichlet(alpha), alpha > 0.

    Small alpha gives each member few labels, large alpha gives everybody the same mixture. A member whom the
    draw leaves with fewer than `minimum` examples gets the missing ones from the member that has most.
    Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification" (2019). Raises PartitionError.
    """
    PARTITIONS["dirichlet"].check(alpha)
    _check_members(labels, members, minimum)
    random = _random(seed)
    shares: list[list[int]] = [[] for _ in range(members)]
    for label in np.unique(labels):
        indices = random.permutation(np.flatnonzero(labels == label))
        proportions = _proportions(random, alpha, members)
        cuts = (np.cumsum(proportions)[:-1] * len(indices)).astype(np.int64)
        for share, part in zip(shares, np.split(indices, cuts), strict=True):
            share.extend(int(i) for i in part)
    for share in shares:
        while len(share) < minimum:
            richest = max(shares, key=len)
            share.append(richest.pop(random.randint(len(richest))))
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def shards(labels: Labels, members: int, shards: int, seed: int) -> list[Indices]:
    """Sort by label, cut into members * shards equal shards, give each member `shards` of them at random.

    Shard sizes differ by at most one; examples of one label keep their order. With shards = 1 each member has
    one run of the sorted examples: the division of Karimireddy, He, Jaggi, "Byzantine-Robust Learning on
    Heterogeneous Datasets via Bucketing" (2022), except that chance decides which member gets which run.
    Source: the "pathological non-IID" division of McMahan, Moore, Ramage, Hampson, Arcas,
    "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017). Raises PartitionError.
    """
    PARTITIONS["shards"].check(shards)
    _check_members(labels, members, shards)
    pieces = np.array_split(_by_label(labels, np.arange(len(labels))), members * shards)
    dealt = _random(seed).permutation(len(pieces)).reshape(members, shards)
    return [_ascending(np.concatenate([pieces[piece] for piece in hand])) for hand in dealt]


def gamma_similarity(labels: Labels, members: int, gamma: float, seed: int) -> list[Indices]:
    """Deal a random fraction gamma of the examples evenly; sort the rest by label and cut it in sequence.

    gamma = 1 is `iid`; gamma = 0 gives member i the i-th run of the sorted examples, whatever the seed. As in
    ByzFL, floor(gamma n) examples are dealt, and equal labels keep their order. Unlike ByzFL, which deals the
    first floor(gamma n) of the data set, chance decides which; and the runs are cut so that members' sizes
    differ by at most one, where ByzFL cuts both parts evenly and they may differ by two.
    Source: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
    Federated Learning" (2020), where gamma is the "similarity". Raises PartitionError.
    """
    PARTITIONS["gamma"].check(gamma)
    _check_members(labels, members)
    count = len(labels)
    shuffled = _random(seed).permutation(count)
    similar = int(count * gamma)
    dealt = np.array_split(shuffled[:similar], members)
    sizes = [len(part) for part in np.array_split(shuffled, members)]
    runs = np.split(
        _by_label(labels, np.sort(shuffled[similar:])),
        np.cumsum([size - len(part) for size, part in zip(sizes, dealt, strict=True)])[:-1],
    )
    return [_ascending(np.concatenate(pair)) for pair in zip(dealt, runs, strict=True)]


@dataclass(frozen=True, slots=True)
class Partition:
    """A way to divide examples, and what its parameter may be, so that a choice is checked without data.

    rule: divides (labels, members, parameter, seed). parameter: the name of its one parameter, or None.
    within, bounds: whether a value of the parameter is allowed, and the same in words.
    """

    name: str
    rule: Callable[[Labels, int, float, int], list[Indices]]
    parameter: str | None = None
    bounds: str = ""
    within: Callable[[float], bool] = lambda _: False

    def check(self, parameter: float | None) -> None:
        """Raise PartitionError unless this parameter (None: no parameter) suits this partition."""
        if self.parameter is None:
            if parameter is not None:
                raise PartitionError(
                    f"partition {self.name} has no parameter, found {parameter}: leave it out"
                )
        elif parameter is None:
            raise PartitionError(f"partition {self.name} needs {self.parameter}, which must be {self.bounds}")
        elif not self.within(parameter):
            raise PartitionError(f"{self.parameter} must be {self.bounds}, found {parameter}")

    def divide(self, labels: Labels, members: int, parameter: float | None, seed: int) -> list[Indices]:
        """One ascending array of indices per member, disjoint and complete. Raises PartitionError."""
        self.check(parameter)
        return self.rule(labels, members, 0.0 if parameter is None else parameter, seed)


PARTITIONS: Final[dict[str, Partition]] = {
    entry.name: entry
    for entry in (
        Partition("iid", rule=lambda labels, members, _, seed: iid(labels, members, seed)),
        Partition(
            "dirichlet",
            rule=dirichlet,
            parameter="alpha",
            bounds="a positive number",
            within=lambda alpha: 0.0 < alpha < float("inf"),
        ),
        Partition(
            "shards",
            rule=lambda labels, members, count, seed: shards(labels, members, int(count), seed),
            parameter="shards",
            bounds="a whole number of shards for each member, at least 1",
            within=lambda count: count >= 1 and count % 1 == 0,
        ),
        Partition(
            "gamma",
            rule=gamma_similarity,
            parameter="gamma",
            bounds="from 0 to 1",
            within=lambda gamma: 0.0 <= gamma <= 1.0,
        ),
    )
}
"""The partitions by name."""


def _check_members(labels: Labels, members: int, each: int = 1) -> None:
    """Raise PartitionError unless there is at least one member, and enough examples for `each` a member."""
    if members < 1:
        raise PartitionError(f"the number of members must be at least 1, found {members}")
    if len(labels) < members * each:
        raise PartitionError(
            f"{members} members with at least {each} examples each need {members * each} examples, "
            f"found {len(labels)}; use fewer members or a larger data set"
        )


def _random(seed: int) -> np.random.RandomState:
    """RandomState: NumPy's compatibility policy freezes its stream, and not that of Generator."""
    if not 0 <= seed < 2**32:
        raise PartitionError(f"the seed must be from 0 to 2^32 - 1, found {seed}")
    return np.random.RandomState(seed)


def _by_label(labels: Labels, indices: Indices) -> Indices:
    """The indices sorted by label; those of one label keep their order."""
    return indices[np.argsort(labels[indices], kind="stable")]


def _ascending(indices: npt.NDArray[np.integer]) -> Indices:
    return np.sort(indices).astype(np.int64)


def _proportions(random: np.random.RandomState, alpha: float, members: int) -> npt.NDArray[np.float64]:
    """One Dirichlet(alpha) draw; for a tiny alpha, where every gamma variate underflows, its limit."""
    gammas: npt.NDArray[np.float64] = random.standard_gamma(alpha, members)
    total = gammas.sum()
    if not (0.0 < total < np.inf):
        corner = np.zeros(members)
        corner[random.randint(members)] = 1.0
        return corner
    proportions: npt.NDArray[np.float64] = gammas / total
    return proportions
