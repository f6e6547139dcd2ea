"""Every partition is disjoint, complete, a function of its arguments, and skewed as its source says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.node.datasets import load_dataset
from folkmoot.node.partitions import (
    PARTITIONS,
    PartitionError,
    dirichlet,
    divide,
    find_partition,
    gamma_similarity,
    iid,
    shards,
)

Shares = Sequence[npt.NDArray[np.int64]]

SEEDS = st.integers(0, 2**32 - 1)
LABELS = st.lists(st.integers(0, 9), min_size=40, max_size=300).map(lambda found: np.array(found))
EXAMPLES = {
    "iid": st.none(),
    "dirichlet": st.sampled_from([1e-9, 0.01, 0.1, 1.0, 10.0, 1e6]),
    "shards": st.integers(1, 4),
    "gamma": st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
}
SORTED = np.repeat(np.arange(10), 30)


def same(first: Shares, second: Shares) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def sizes(shares: Shares) -> list[int]:
    return [len(share) for share in shares]


def label_counts(labels: npt.NDArray[np.int64], shares: Shares) -> list[int]:
    return [len(np.unique(labels[share])) for share in shares]


@pytest.mark.parametrize("kind", PARTITIONS)
@given(data=st.data(), labels=LABELS, seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_partition_is_disjoint_complete_ascending_and_leaves_nobody_empty(
    kind: str, data: st.DataObject, labels: npt.NDArray[np.int64], seed: int
) -> None:
    members = data.draw(st.integers(1, len(labels) // 8))
    parameter = data.draw(EXAMPLES[kind])
    shares = divide(kind, labels, members, seed, parameter)
    assert len(shares) == members
    assert min(sizes(shares)) >= 1
    assert sorted(np.concatenate(shares)) == list(range(len(labels)))
    assert all(share.dtype == np.int64 and (np.diff(share) > 0).all() for share in shares)
    assert same(shares, divide(kind, labels.copy(), members, seed, parameter))


@given(labels=LABELS, members=st.integers(1, 20), alpha=EXAMPLES["dirichlet"], seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_dirichlet_leaves_each_member_the_minimum(
    labels: npt.NDArray[np.int64], members: int, alpha: float, seed: int
) -> None:
    assert min(sizes(dirichlet(labels, members, alpha, seed, minimum=2))) >= 2


@given(labels=LABELS, members=st.integers(1, 40), gamma=EXAMPLES["gamma"], seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_iid_and_gamma_give_everybody_equally_many(
    labels: npt.NDArray[np.int64], members: int, gamma: float, seed: int
) -> None:
    expected = sizes(np.array_split(labels, members))
    assert sizes(iid(labels, members, seed)) == expected
    assert sizes(gamma_similarity(labels, members, gamma, seed)) == expected


@given(labels=LABELS, members=st.integers(1, 10), count=st.integers(1, 4), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_shard_sizes_differ_by_at_most_one(
    labels: npt.NDArray[np.int64], members: int, count: int, seed: int
) -> None:
    smallest = len(labels) // (members * count)
    found = sizes(shards(labels, members, count, seed))
    assert count * smallest <= min(found)
    assert max(found) <= count * (smallest + 1)


@pytest.mark.parametrize(
    ("kind", "parameter"), [("iid", None), ("dirichlet", 1), ("shards", 2), ("gamma", 0.5)]
)
def test_another_seed_gives_another_partition(kind: str, parameter: float | None) -> None:
    assert not same(divide(kind, SORTED, 7, 3, parameter), divide(kind, SORTED, 7, 4, parameter))


@pytest.mark.parametrize(
    ("kind", "parameter"), [("iid", None), ("dirichlet", 1), ("shards", 2), ("gamma", 0.5)]
)
def test_one_member_gets_everything(kind: str, parameter: float | None) -> None:
    (share,) = divide(kind, SORTED, 1, 3, parameter)
    assert np.array_equal(share, np.arange(len(SORTED)))


def test_the_partitions_of_published_tasks_stay_what_they_are() -> None:
    labels = np.arange(100) % 3
    digest = hashlib.sha256()
    for members, alpha, seed, minimum in (
        (7, 1.0, 3, 8), (1, 0.5, 0, 2), (20, 1e-9, 9, 2), (20, 0.1, 2**32 - 1, 5), (5, 1e6, 1, 0),
    ):  # fmt: skip
        for share in dirichlet(labels, members, alpha, seed, minimum):
            digest.update(share.astype("<i8").tobytes() + b"|")
    assert digest.hexdigest() == "535b05d1ed2b430eff4da4da6e769444ac9e02b044ad77b469ff1abefba0c158"
    labels = np.array([1, 0, 2, 1, 0, 2, 1, 0])
    assert [list(share) for share in iid(labels, 3, 1)] == [[1, 2, 7], [0, 4, 6], [3, 5]]
    assert [list(share) for share in shards(labels, 2, 2, 1)] == [[2, 3, 5, 6], [0, 1, 4, 7]]
    assert [list(share) for share in gamma_similarity(labels, 2, 0.5, 1)] == [[0, 2, 4, 7], [1, 3, 5, 6]]


def test_a_small_alpha_gives_each_member_fewer_labels_than_a_large_one() -> None:
    labels = load_dataset("digits").train.labels
    assert np.mean(label_counts(labels, dirichlet(labels, 7, 0.05, seed=1))) < 6
    assert np.mean(label_counts(labels, dirichlet(labels, 7, 1000.0, seed=1))) == 10


def test_two_shards_give_each_of_a_hundred_members_at_most_two_digits() -> None:
    labels = np.random.RandomState(1).permutation(np.repeat(np.arange(10), 600))
    shares = shards(labels, 100, 2, seed=1)
    assert set(sizes(shares)) == {60}
    assert max(label_counts(labels, shares)) == 2


def test_one_shard_each_is_the_sorted_examples_cut_in_sequence_up_to_the_order_of_members() -> None:
    labels = np.random.RandomState(1).permutation(SORTED)
    runs = [np.sort(run) for run in np.array_split(np.argsort(labels, kind="stable"), 7)]
    dealt = shards(labels, 7, 1, seed=5)
    assert sorted(map(tuple, dealt)) == sorted(map(tuple, runs))
    assert not same(dealt, runs)


@given(labels=LABELS, members=st.integers(1, 20), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_gamma_1_is_iid_and_gamma_0_cuts_the_sorted_examples_in_sequence(
    labels: npt.NDArray[np.int64], members: int, seed: int
) -> None:
    runs = [np.sort(run) for run in np.array_split(np.argsort(labels, kind="stable"), members)]
    assert same(gamma_similarity(labels, members, 0, seed), runs)
    assert same(gamma_similarity(labels, members, 1, seed), iid(labels, members, seed))


def test_gamma_is_the_fraction_that_is_dealt_at_random() -> None:
    labels = np.repeat(np.arange(10), 1000)
    for gamma in (0.25, 0.5, 0.75):
        for member, share in enumerate(gamma_similarity(labels, 10, gamma, seed=1)):
            own = np.mean(labels[share] == member)
            assert abs(own - (gamma / 10 + 1 - gamma)) < 0.05


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [
        ("dirichlet", 0.0), ("dirichlet", -1.0), ("dirichlet", float("nan")), ("dirichlet", float("inf")),
        ("shards", 0), ("shards", -1), ("shards", 1.5), ("shards", float("nan")), ("shards", float("inf")),
        ("gamma", -0.01), ("gamma", 1.01), ("gamma", float("nan")),
    ],
)  # fmt: skip
def test_a_parameter_out_of_bounds_is_refused_before_any_data_is_there(kind: str, parameter: float) -> None:
    with pytest.raises(PartitionError, match=rf"{PARTITIONS[kind].parameter} must be .*, found"):
        PARTITIONS[kind].check(parameter)
    with pytest.raises(PartitionError, match="must be"):
        divide(kind, SORTED, 3, 1, parameter)


@pytest.mark.parametrize(
    ("kind", "name", "allowed"),
    [("iid", None, None), ("dirichlet", "alpha", 0.1), ("shards", "shards", 2.0), ("gamma", "gamma", 1)],
)
def test_a_kind_is_known_with_the_name_of_its_parameter(
    kind: str, name: str | None, allowed: float | None
) -> None:
    partition = find_partition(kind)
    partition.check(allowed)
    assert (partition.name, partition.parameter) == (kind, name)
    with pytest.raises(PartitionError, match="leave it out" if name is None else f"needs {name}"):
        partition.check(1.0 if name is None else None)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PartitionError, match="'sorted'; choose one of iid, dirichlet, shards, gamma"):
        divide("sorted", SORTED, 3, 1)


@pytest.mark.parametrize(
    ("kind", "parameter"), [("iid", None), ("dirichlet", 1), ("shards", 1), ("gamma", 0.5)]
)
@pytest.mark.parametrize("members", [0, -1, len(SORTED) + 1])
def test_no_members_and_more_members_than_examples_are_refused(
    kind: str, parameter: float | None, members: int
) -> None:
    with pytest.raises(PartitionError, match=r"at least 1, found|use fewer members or a larger data set"):
        divide(kind, SORTED, members, 1, parameter)


def test_more_shards_than_examples_are_refused() -> None:
    with pytest.raises(PartitionError, match="301 examples, found 300"):
        shards(SORTED, 7, 43, seed=1)
    with pytest.raises(PartitionError, match="found 300; use fewer"):
        divide("shards", SORTED, 7, 1, 10.0**300)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_the_generator_cannot_take_is_refused(seed: int) -> None:
    with pytest.raises(PartitionError, match=f"seed must be from 0 to .*, found {seed}"):
        divide("iid", SORTED, 3, seed)
