"""The data sets are the published ones, their test set is fixed, and a partition is disjoint and complete."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.node.datasets import (
    FASHION_MNIST_FOLDER,
    DatasetCorrupt,
    DatasetMissing,
    PartitionError,
    UnknownDataset,
    load_dataset,
    partition,
)


@given(
    labels=st.lists(st.integers(0, 9), min_size=40, max_size=400),
    members=st.integers(1, 20),
    alpha=st.sampled_from([1e-9, 0.01, 0.1, 1.0, 10.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_a_partition_is_disjoint_complete_and_leaves_nobody_empty(
    labels: list[int], members: int, alpha: float, seed: int
) -> None:
    shares = partition(np.array(labels), members, alpha, seed, minimum=2)
    assert len(shares) == members
    assert sorted(i for share in shares for i in share) == list(range(len(labels)))
    assert min(len(share) for share in shares) >= 2


def test_the_same_seed_gives_the_same_partition_and_another_seed_another() -> None:
    labels = load_dataset("digits").train.labels
    first, again, other = (partition(labels, 7, 1.0, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_small_alpha_gives_each_member_fewer_labels_than_a_large_one() -> None:
    labels = load_dataset("digits").train.labels

    def mean_labels(alpha: float) -> float:
        shares = partition(labels, 7, alpha, seed=1)
        return float(np.mean([len(np.unique(labels[share])) for share in shares]))

    assert mean_labels(0.05) < 6
    assert mean_labels(1000.0) == 10


@pytest.mark.parametrize(("members", "alpha"), [(0, 1.0), (7, 0.0), (7, -1.0), (7, float("nan")), (20, 1.0)])
def test_an_impossible_partition_is_refused(members: int, alpha: float) -> None:
    with pytest.raises(PartitionError):
        partition(np.zeros(100, dtype=np.int64), members, alpha, seed=1)


def test_digits_and_breast_cancer_are_scikit_learns_examples_split_without_overlap() -> None:
    from sklearn.datasets import load_breast_cancer, load_digits

    for name, reference, scale, classes in (
        ("digits", load_digits(), (0.3055 * 16, 0.3763 * 16), 10),
        ("breast-cancer", load_breast_cancer(), None, 2),
    ):
        dataset = load_dataset(name)
        assert dataset.classes == classes
        assert dataset.train.features.dtype == dataset.test.features.dtype == np.float32
        features = np.concatenate([dataset.train.features, dataset.test.features])
        labels = np.concatenate([dataset.train.labels, dataset.test.labels])
        assert len(features) == len(reference.target)
        assert len(dataset.test.labels) == len(reference.target) // 5
        assert np.array_equal(np.bincount(labels), np.bincount(reference.target))
        if scale is not None:
            expected = ((reference.data - scale[0]) / scale[1]).astype(np.float32)
            assert np.allclose(np.sort(features.sum(1)), np.sort(expected.sum(1)), atol=1e-3)
        assert abs(float(dataset.train.features.mean())) < 0.05
        assert abs(float(dataset.train.features.std()) - 1) < 0.05


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownDataset, match="digits, breast-cancer, fashion-mnist"):
        load_dataset("mnist")


def test_missing_idx_files_say_which_package_has_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match=r"train-images-idx3-ubyte.*dataset-fashion-mnist.*data_dir"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzipped"])
def test_idx_files_with_other_bytes_are_refused(tmp_path: Path, compress: bool) -> None:
    content = struct.pack(">HBB3I", 0, 8, 3, 60_000, 28, 28) + bytes(100)
    if compress:
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    else:
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DatasetCorrupt, match="SHA-256"):
        load_dataset("fashion-mnist", tmp_path)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(10_000))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetCorrupt, match="not a complete gzip file"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_from_debians_package() -> None:
    dataset = load_dataset("fashion-mnist")
    assert dataset.train.features.shape == (60_000, 1, 28, 28)
    assert dataset.test.features.shape == (10_000, 1, 28, 28)
    assert np.array_equal(np.bincount(dataset.train.labels), np.full(10, 6_000))
    assert abs(float(dataset.train.features.mean())) < 0.01
