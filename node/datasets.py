"""Real data sets with a fixed held-out test set, read from files with published checksums.

Only reads files, and only into memory; downloads nothing and knows nothing of models, rounds or peers.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetCorrupt",
    "DatasetError",
    "DatasetMissing",
    "DatasetSource",
    "Indices",
    "Labels",
    "Split",
    "UnknownDataset",
    "load_dataset",
]

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist installs the IDX files."""

SPLIT_SEED = 20200523


class DatasetError(Exception):
    """Base of every failure to provide data."""


class UnknownDataset(DatasetError):
    """No data set has this name."""


class DatasetMissing(DatasetError):
    """The files are not on this machine; the message says where to get them."""


class DatasetCorrupt(DatasetError):
    """A file's bytes are not those of the published data set."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Examples with their labels: features float32 (n, …), labels int64 (n,) in [0, classes)."""

    features: Features
    labels: Labels

    def take(self, indices: Indices) -> Split:
        """The examples at `indices`, in that order."""
        return Split(self.features[indices], self.labels[indices])


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A classification task: everybody's training examples and the common held-out test set."""

    name: str
    classes: int
    train: Split
    test: Split


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """What is known of a data set without reading it, and how it is read.

    shape: of one example's features. needs_folder: there is no place where its files are looked for unasked.
    """

    classes: int
    shape: tuple[int, ...]
    needs_folder: bool
    read: Callable[[Path | None], Dataset]


def load_dataset(name: str, folder: Path | None = None) -> Dataset:
    """The data set of this name, standardised with constants and split the same way everywhere.

    `folder` holds the files of MNIST, CIFAR-10 or Fashion-MNIST (the latter's default: where Debian's package
    puts them); the other data sets come with scikit-learn and ignore it. Raises UnknownDataset,
    DatasetMissing, DatasetCorrupt.
    """
    try:
        source = DATASETS[name]
    except KeyError:
        raise UnknownDataset(f"no data set is called {name!r}; choose one of {', '.join(DATASETS)}") from None
    return source.read(folder)


def _digits(_folder: Path | None) -> Dataset:
    """Handwritten digits, 8 x 8 grey levels 0 to 16 (Alpaydin, Kaynak; UCI). 1,797 examples, 10 classes."""
    table = _bundled_table(
        "digits.csv.gz", "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8", skip=0
    )
    features = (table[:, :64] / 16.0 - 0.3055) / 0.3763
    return _divide("digits", 10, features, table[:, 64])


def _breast_cancer(_folder: Path | None) -> Dataset:
    """Breast cancer Wisconsin, diagnostic (UCI): 569 examples, 30 measures; 0 malignant, 1 benign."""
    table = _bundled_table(
        "breast_cancer.csv", "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed", skip=1
    )
    features = (table[:, :30] - np.array(_BREAST_CANCER_CENTRE)) / np.array(_BREAST_CANCER_SCALE)
    return _divide("breast-cancer", 2, features, table[:, 30])


def _fashion_mnist(folder: Path | None) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 28 x 28 images, features (n, 1, 28, 28), 10 classes."""
    folder = FASHION_MNIST_FOLDER if folder is None else folder
    return _idx_dataset("fashion-mnist", folder, _FASHION_MNIST_SHA256, 0.2860, 0.3530, _FASHION_MNIST_ADVICE)


def _mnist(folder: Path | None) -> Dataset:
    """MNIST (LeCun, Cortes, Burges 1998): 28 x 28 handwritten digits, features (n, 1, 28, 28), 10 classes."""
    if folder is None:
        raise DatasetMissing(f"mnist needs a folder that holds its files; {_MNIST_ADVICE}")
    return _idx_dataset("mnist", folder, _MNIST_SHA256, 0.1307, 0.3081, _MNIST_ADVICE)


def _idx_dataset(
    name: str, folder: Path, digests: dict[str, str], mean: float, deviation: float, advice: str
) -> Dataset:
    """A data set of four IDX files in the form of MNIST's."""

    def split(prefix: str) -> Split:
        count = _MNIST_COUNTS[prefix]
        images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        pixels = _read_idx(folder, images, (count, 28, 28), digests[images], advice)[:, None]
        classes = _read_idx(folder, labels, (count,), digests[labels], advice)
        return Split(_standardised(pixels, [mean], [deviation]), classes.astype(np.int64))

    return Dataset(name, 10, split("train"), split("t10k"))


def _cifar_10(folder: Path | None) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 32 x 32 colour images, features (n, 3, 32, 32), 10 classes.

    Standardised by channel with the constants that ByzFL uses too. Its deviations are smaller than those over
    all pixels, which are 0.2470, 0.2435 and 0.2616.
    """
    if folder is None:
        raise DatasetMissing(f"cifar-10 needs a folder that holds its files; {_CIFAR_10_ADVICE}")
    archived = not (folder / "data_batch_1.bin").exists() and (folder / _CIFAR_10_ARCHIVE).exists()
    batches = _read_archived_batches(folder) if archived else _read_batches(folder)

    def split(*names: str) -> Split:
        records = np.concatenate([np.frombuffer(batches.pop(name), dtype=np.uint8) for name in names])
        records = records.reshape(-1, 1 + 3 * 32 * 32)
        pixels = records[:, 1:].reshape(-1, 3, 32, 32)
        features = _standardised(pixels, [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
        return Split(features, records[:, 0].astype(np.int64))

    return Dataset(
        "cifar-10", 10, split(*(f"data_batch_{i}.bin" for i in range(1, 6))), split("test_batch.bin")
    )


DATASETS: Final[dict[str, DatasetSource]] = {
    "digits": DatasetSource(10, (64,), False, _digits),
    "breast-cancer": DatasetSource(2, (30,), False, _breast_cancer),
    "fashion-mnist": DatasetSource(10, (1, 28, 28), False, _fashion_mnist),
    "mnist": DatasetSource(10, (1, 28, 28), True, _mnist),
    "cifar-10": DatasetSource(10, (3, 32, 32), True, _cifar_10),
}
"""The data sets by name."""


def _divide(
    name: str, classes: int, features: npt.NDArray[np.float64], labels: npt.NDArray[np.float64]
) -> Dataset:
    """Hold out a fixed fifth of the examples as the test set."""
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    held_out = np.sort(order[: len(labels) // 5])
    rest = np.sort(order[len(labels) // 5 :])
    examples = Split(features.astype(np.float32), labels.astype(np.int64))
    return Dataset(name, classes, examples.take(rest), examples.take(held_out))


def _standardised(pixels: npt.NDArray[np.uint8], means: list[float], deviations: list[float]) -> Features:
    """(pixel / 255 - mean) / deviation by channel, for pixels (n, channels, height, width)."""
    features = pixels.astype(np.float32)
    features /= np.float32(255)
    features -= np.array(means, dtype=np.float32)[:, None, None]
    features /= np.array(deviations, dtype=np.float32)[:, None, None]
    return features


def _bundled_table(file: str, sha256: str, skip: int) -> npt.NDArray[np.float64]:
    """A table that scikit-learn carries, read without importing scikit-learn (seconds of start-up a peer)."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DatasetMissing(f"{file} comes with scikit-learn, which is not installed: pip install folkmoot")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / file
    content = _read_verified(path, sha256, _LARGEST_TABLE, "reinstall scikit-learn")
    lines = content.decode("ascii").splitlines()
    table: npt.NDArray[np.float64] = np.loadtxt(lines, delimiter=",", skiprows=skip, dtype=np.float64)
    return table


def _read_idx(
    folder: Path, name: str, shape: tuple[int, ...], sha256: str, advice: str
) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes, plain or gzipped, that must have this shape and the published digest.

    Format: two zero bytes, 0x08 for uint8, the number of dimensions, each dimension as uint32 big endian.
    """
    plain = folder / name
    path = plain if plain.exists() else folder / f"{name}.gz"
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    size = len(header) + int(np.prod(shape))
    content = _read_verified(path, sha256, size, advice)
    if not content.startswith(header) or len(content) != size:
        raise DatasetCorrupt(f"{path}: expected an IDX file of shape {shape}; {advice}")
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape)


def _read_batches(folder: Path) -> dict[str, bytes]:
    """CIFAR-10's six files by name: 10,000 records each of one byte of label and 3 x 32 x 32 of pixels."""
    size = _CIFAR_10_BATCH_BYTES
    return {
        name: _read_verified(folder / name, sha256, size, _CIFAR_10_ADVICE)
        for name, sha256 in _CIFAR_10_SHA256.items()
    }


def _read_archived_batches(folder: Path) -> dict[str, bytes]:
    """The same from the archive, which is opened only if its digest holds, and never unpacked to disk."""
    path = folder / _CIFAR_10_ARCHIVE
    content = _read_verified(path, _CIFAR_10_ARCHIVE_SHA256, _CIFAR_10_ARCHIVE_BYTES, _CIFAR_10_ADVICE)
    batches = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("cifar-10-batches-bin/")
                if name in _CIFAR_10_SHA256 and member.isreg() and member.size == _CIFAR_10_BATCH_BYTES:
                    stream = archive.extractfile(member)
                    batches[name] = b"" if stream is None else stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DatasetCorrupt(f"{path} is not a complete archive ({error}); {_CIFAR_10_ADVICE}") from error
    for name in _CIFAR_10_SHA256:
        if len(batches.get(name, b"")) != _CIFAR_10_BATCH_BYTES:
            raise DatasetCorrupt(
                f"{path}: expected in it {name} of {_CIFAR_10_BATCH_BYTES} bytes; {_CIFAR_10_ADVICE}"
            )
    return batches


def _read_verified(path: Path, sha256: str, most: int, advice: str) -> bytes:
    """The file's content of at most `most` bytes, whose SHA-256 must be the given one.

    It is unpacked when the name ends in .gz, but not in .tar.gz.
    """
    packed = path.suffix == ".gz" and not path.name.endswith(".tar.gz")
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            content = stream.read(most + 1)
    except FileNotFoundError:
        raise DatasetMissing(f"{path} does not exist; {advice}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetCorrupt(f"{path} is not a complete gzip file ({error}); {advice}") from error
    except OSError as error:
        raise DatasetMissing(f"{path} cannot be read ({error.strerror}); {advice}") from error
    if len(content) > most:
        raise DatasetCorrupt(f"{path}: expected content of at most {most} bytes, found more; {advice}")
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DatasetCorrupt(f"{path}: expected content with SHA-256 {sha256}, found {found}; {advice}")
    return content


_LARGEST_TABLE = 2**20

_FASHION_MNIST_ADVICE = (
    "install Debian's package dataset-fashion-mnist, or name a folder (a trainer's data_dir, a grid's "
    "folder) with the four IDX files of Fashion-MNIST, plain or .gz"
)
_MNIST_ADVICE = (
    "get the four IDX files, plain or .gz, from the data set's page, yann.lecun.com/exdb/mnist, "
    "and name the folder (a trainer's data_dir, a grid's folder) that holds them"
)
_CIFAR_10_ADVICE = (
    "get the binary version, cifar-10-binary.tar.gz, from the data set's page, "
    "www.cs.toronto.edu/~kriz/cifar.html, and name the folder (a trainer's data_dir, a grid's folder) "
    "that holds it or its six .bin files"
)

_MNIST_COUNTS = {"train": 60_000, "t10k": 10_000}

# Digests of the unpacked files.
_FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_CIFAR_10_SHA256 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
_CIFAR_10_BATCH_BYTES = 10_000 * (1 + 3 * 32 * 32)

_CIFAR_10_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_10_ARCHIVE_BYTES = 170_052_171
_CIFAR_10_ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

# Means and standard deviations of the training part's 30 measures, rounded: constants of the task, so that no
# member needs another's data to standardise its own.
_BREAST_CANCER_CENTRE = (
    *(14.14, 19.42, 92.12, 656.0, 0.09655, 0.1057, 0.09045, 0.04975, 0.1819, 0.06294),
    *(0.4026, 1.228, 2.868, 39.82, 0.007038, 0.02598, 0.03193, 0.01195, 0.02056, 0.003842),
    *(16.3, 25.82, 107.5, 882.0, 0.1324, 0.258, 0.2756, 0.1159, 0.2903, 0.0844),
)
_BREAST_CANCER_SCALE = (
    *(3.537, 4.283, 24.42, 351.0, 0.01422, 0.05375, 0.07969, 0.0394, 0.02807, 0.007079),
    *(0.2604, 0.5641, 1.905, 41.88, 0.003019, 0.01772, 0.02684, 0.006154, 0.008102, 0.002503),
    *(4.841, 6.134, 33.79, 567.7, 0.02282, 0.1578, 0.2076, 0.06667, 0.06091, 0.01835),
)
