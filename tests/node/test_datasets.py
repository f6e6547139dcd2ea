"""The data sets are the published ones, their test set is fixed, and files with other bytes are refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from folkmoot.node import datasets
from folkmoot.node.datasets import (
    DATASETS,
    FASHION_MNIST_FOLDER,
    Dataset,
    DatasetCorrupt,
    DatasetMissing,
    UnknownDataset,
    load_dataset,
)

Bytes = npt.NDArray[np.uint8]

IDX_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip
BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
ARCHIVE = "cifar-10-binary.tar.gz"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def idx(values: Bytes) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def tar_gz(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def matches_what_is_known(name: str, dataset: Dataset) -> bool:
    known = DATASETS[name]
    shapes = {split.features.shape[1:] for split in (dataset.train, dataset.test)}
    return (dataset.name, dataset.classes, shapes) == (name, known.classes, {known.shape})


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, Bytes]:
    """Files like MNIST's with 30 and 10 examples, published in the place of MNIST's."""
    random = np.random.RandomState(1)
    files = {}
    for prefix, count in (("train", 30), ("t10k", 10)):
        files[f"{prefix}-images-idx3-ubyte"] = random.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        files[f"{prefix}-labels-idx1-ubyte"] = random.randint(0, 10, count).astype(np.uint8)
        monkeypatch.setitem(datasets._MNIST_COUNTS, prefix, count)
    for name, values in files.items():
        monkeypatch.setitem(datasets._MNIST_SHA256, name, sha256(idx(values)))
    return files


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, Bytes]:
    """Files like CIFAR-10's with 4 records each, published in the place of CIFAR-10's."""
    random = np.random.RandomState(1)
    files = {}
    for name in BATCHES:
        labels, pixels = random.randint(0, 10, (4, 1)), random.randint(0, 256, (4, 3072))
        files[name] = np.hstack([labels, pixels]).astype(np.uint8)
        monkeypatch.setitem(datasets._CIFAR_10_SHA256, name, sha256(files[name].tobytes()))
    monkeypatch.setattr(datasets, "_CIFAR_10_BATCH_BYTES", 4 * 3073)
    return files


def publish_archive(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> None:
    (folder / ARCHIVE).write_bytes(content)
    monkeypatch.setattr(datasets, "_CIFAR_10_ARCHIVE_SHA256", sha256(content))


def test_digits_and_breast_cancer_are_scikit_learns_examples_split_without_overlap() -> None:
    from sklearn.datasets import load_breast_cancer, load_digits

    for name, reference, scale, classes in (
        ("digits", load_digits(), (0.3055 * 16, 0.3763 * 16), 10),
        ("breast-cancer", load_breast_cancer(), None, 2),
    ):
        dataset = load_dataset(name)
        assert dataset.classes == classes
        assert matches_what_is_known(name, dataset)
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
    with pytest.raises(UnknownDataset, match="digits, breast-cancer, fashion-mnist, mnist, cifar-10"):
        load_dataset("imagenet")


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


def test_a_file_that_unpacks_to_more_than_the_data_set_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(60_000 * 28 * 28 + 17)))
    with pytest.raises(DatasetCorrupt, match="at most 47040016 bytes, found more"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_from_debians_package() -> None:
    dataset = load_dataset("fashion-mnist")
    assert matches_what_is_known("fashion-mnist", dataset)
    assert dataset.train.features.shape == (60_000, 1, 28, 28)
    assert dataset.test.features.shape == (10_000, 1, 28, 28)
    assert np.array_equal(np.bincount(dataset.train.labels), np.full(10, 6_000))
    assert abs(float(dataset.train.features.mean())) < 0.01


@pytest.mark.parametrize(
    ("name", "page"),
    [("mnist", "yann.lecun.com/exdb/mnist"), ("cifar-10", "www.cs.toronto.edu/~kriz/cifar.html")],
)
def test_a_data_set_without_a_place_of_its_own_needs_a_folder(tmp_path: Path, name: str, page: str) -> None:
    assert DATASETS[name].needs_folder
    with pytest.raises(DatasetMissing, match=f"{name} needs a folder.*{page}.*data_dir"):
        load_dataset(name)
    with pytest.raises(DatasetMissing, match=f"{tmp_path}.* does not exist.*{page}.*data_dir"):
        load_dataset(name, tmp_path)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzipped"])
def test_mnist_is_read_and_standardised(
    tmp_path: Path, small_mnist: dict[str, Bytes], compress: bool
) -> None:
    for name, values in small_mnist.items():
        content = gzip.compress(idx(values)) if compress else idx(values)
        (tmp_path / (f"{name}.gz" if compress else name)).write_bytes(content)
    dataset = load_dataset("mnist", tmp_path)
    assert matches_what_is_known("mnist", dataset)
    for split, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        pixels = small_mnist[f"{prefix}-images-idx3-ubyte"][:, None] / 255
        assert split.features.dtype == np.float32
        assert np.allclose(split.features, (pixels - 0.1307) / 0.3081, atol=1e-5)
        assert split.labels.dtype == np.int64
        assert np.array_equal(split.labels, small_mnist[f"{prefix}-labels-idx1-ubyte"])


@pytest.mark.parametrize("name", IDX_FILES)
def test_each_of_mnists_files_must_be_there_and_be_the_published_one(
    tmp_path: Path, small_mnist: dict[str, Bytes], name: str
) -> None:
    for file, values in small_mnist.items():
        (tmp_path / file).write_bytes(idx(values))
    corrupt = bytearray(idx(small_mnist[name]))
    corrupt[-1] ^= 1
    (tmp_path / name).write_bytes(corrupt)
    with pytest.raises(DatasetCorrupt, match=f"{name}: expected content with SHA-256 .*yann.lecun.com"):
        load_dataset("mnist", tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DatasetMissing, match=f"{name}.gz does not exist; .*plain or .gz"):
        load_dataset("mnist", tmp_path)


def test_mnists_files_must_have_mnists_shape(
    tmp_path: Path, small_mnist: dict[str, Bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = idx(small_mnist["train-images-idx3-ubyte"].reshape(30, 784))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(flat)
    monkeypatch.setitem(datasets._MNIST_SHA256, "train-images-idx3-ubyte", sha256(flat))
    with pytest.raises(DatasetCorrupt, match=r"expected an IDX file of shape \(30, 28, 28\)"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("archived", [False, True], ids=["six files", "archive"])
def test_cifar_10_is_read_and_standardised_by_channel(
    tmp_path: Path, small_cifar: dict[str, Bytes], monkeypatch: pytest.MonkeyPatch, archived: bool
) -> None:
    files = {name: values.tobytes() for name, values in small_cifar.items()}
    if archived:
        inside = {f"cifar-10-batches-bin/{name}": files[name] for name in reversed(files)}
        publish_archive(monkeypatch, tmp_path, tar_gz({"cifar-10-batches-bin/readme.html": b"?", **inside}))
    else:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
    dataset = load_dataset("cifar-10", tmp_path)
    assert matches_what_is_known("cifar-10", dataset)
    assert len(dataset.train.labels) == 20
    for split, names in ((dataset.train, BATCHES[:5]), (dataset.test, BATCHES[5:])):
        records = np.concatenate([small_cifar[name] for name in names])
        assert np.array_equal(split.labels, records[:, 0])
        assert split.features.dtype == np.float32
        for channel, (mean, scale) in enumerate([(0.4914, 0.2023), (0.4822, 0.1994), (0.4465, 0.2010)]):
            pixels = records[:, 1 + 1024 * channel : 1025 + 1024 * channel].reshape(-1, 32, 32) / 255
            assert np.allclose(split.features[:, channel], (pixels - mean) / scale, atol=1e-5)


@pytest.mark.parametrize("name", BATCHES)
def test_each_of_cifar_10s_files_must_be_there_and_be_the_published_one(
    tmp_path: Path, small_cifar: dict[str, Bytes], name: str
) -> None:
    for file, values in small_cifar.items():
        (tmp_path / file).write_bytes(values.tobytes())
    (tmp_path / name).write_bytes(small_cifar[name].tobytes()[:-1])
    with pytest.raises(DatasetCorrupt, match=f"{name}: expected content with SHA-256 .*www.cs.toronto.edu"):
        load_dataset("cifar-10", tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DatasetMissing, match=f"{name} does not exist; .*{ARCHIVE}"):
        load_dataset("cifar-10", tmp_path)


def test_an_archive_with_another_digest_is_not_opened(tmp_path: Path, small_cifar: dict[str, Bytes]) -> None:
    (tmp_path / ARCHIVE).write_bytes(tar_gz({name: v.tobytes() for name, v in small_cifar.items()}))
    with pytest.raises(DatasetCorrupt, match=f"{ARCHIVE}: expected content with SHA-256 c4a38c50"):
        load_dataset("cifar-10", tmp_path)


def test_a_truncated_archive_is_refused(
    tmp_path: Path, small_cifar: dict[str, Bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tar_gz({f"cifar-10-batches-bin/{name}": v.tobytes() for name, v in small_cifar.items()})
    for length in (0, 5, len(whole) // 2, len(whole) * 9 // 10):
        publish_archive(monkeypatch, tmp_path, whole[:length])
        with pytest.raises(DatasetCorrupt, match=f"{ARCHIVE}(: expected in it| is not a complete archive)"):
            load_dataset("cifar-10", tmp_path)


def test_an_archive_larger_than_cifar_10s_is_refused(
    tmp_path: Path, small_cifar: dict[str, Bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_archive(monkeypatch, tmp_path, bytes(1001))
    monkeypatch.setattr(datasets, "_CIFAR_10_ARCHIVE_BYTES", 1000)
    with pytest.raises(DatasetCorrupt, match="at most 1000 bytes, found more"):
        load_dataset("cifar-10", tmp_path)


def test_nothing_in_an_archive_reaches_the_disk_and_only_regular_files_of_the_right_size_are_read(
    tmp_path: Path, small_cifar: dict[str, Bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "inner" / "data"
    folder.mkdir(parents=True)
    inside = {f"cifar-10-batches-bin/{name}": v.tobytes() for name, v in small_cifar.items()}
    publish_archive(
        monkeypatch,
        folder,
        tar_gz({"../escaped": b"?", f"{tmp_path}/escaped": b"?", **inside, "../../x": b"?"}),
    )
    load_dataset("cifar-10", folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / ARCHIVE]

    publish_archive(monkeypatch, folder, tar_gz({**inside, "cifar-10-batches-bin/test_batch.bin": b"short"}))
    with pytest.raises(DatasetCorrupt, match=r"expected in it test_batch.bin of 12292 bytes"):
        load_dataset("cifar-10", folder)

    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.type, member.linkname = tarfile.SYMTYPE, "test_batch.bin"
        archive.addfile(member)
    publish_archive(monkeypatch, folder, linked.getvalue())
    with pytest.raises(DatasetCorrupt, match=r"expected in it data_batch_1.bin"):
        load_dataset("cifar-10", folder)
