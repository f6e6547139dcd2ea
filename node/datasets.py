"""Real data sets with a fixed held-out test set, and their seeded division among members.

Only reads files and divides indices; knows nothing of models, rounds or peers.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetCorrupt",
    "DatasetError",
    "DatasetMissing",
    "PartitionError",
    "Split",
    "UnknownDataset",
    "load_dataset",
    "partition",
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


class PartitionError(DatasetError):
    """The examples cannot be divided as asked."""


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


def load_dataset(name: str, folder: Path | None = None) -> Dataset:
    """The data set of this name, standardised with constants and split the same way everywhere.

    `folder` holds the IDX files of Fashion-MNIST (default: where Debian's package puts them); the other data
    sets come with scikit-learn and ignore it. Raises UnknownDataset, DatasetMissing, DatasetCorrupt.
    """
    try:
        loader = DATASETS[name]
    except KeyError:
        raise UnknownDataset(f"no data set is called {name!r}; choose one of {', '.join(DATASETS)}") from None
    return loader(folder)


def partition(labels: Labels, members: int, alpha: float, seed: int, minimum: int = 8) -> list[Indices]:
    """Divide examples among members with label skew: for each label, shares drawn from Dirichlet(alpha).

    Small alpha gives each member few labels, large alpha gives everybody the same mixture. The result is
    disjoint and complete, one ascending int64 array of indices per member, and depends only on the arguments.
    A member whom the draw leaves with fewer than `minimum` examples gets the missing ones from the member
    that has most. Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification" (2019). Raises PartitionError.
    """
    if members < 1:
        raise PartitionError(f"the number of members must be at least 1, found {members}")
    if not (0.0 < alpha < float("inf")):
        raise PartitionError(f"alpha must be a positive number, found {alpha}")
    if len(labels) < members * minimum:
        raise PartitionError(
            f"{members} members with at least {minimum} examples each need {members * minimum} examples, "
            f"found {len(labels)}; use fewer members or a larger data set"
        )
    # RandomState's stream is frozen by NumPy's compatibility policy; Generator's is not.
    random = np.random.RandomState(seed)
    shares: list[list[int]] = [[] for _ in range(members)]
    for label in np.unique(labels):
        indices = random.permutation(np.flatnonzero(labels == label))
        proportions = _dirichlet(random, alpha, members)
        cuts = (np.cumsum(proportions)[:-1] * len(indices)).astype(np.int64)
        for share, part in zip(shares, np.split(indices, cuts), strict=True):
            share.extend(int(i) for i in part)
    for share in shares:
        while len(share) < minimum:
            richest = max(shares, key=len)
            share.append(richest.pop(random.randint(len(richest))))
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def _dirichlet(random: np.random.RandomState, alpha: float, members: int) -> npt.NDArray[np.float64]:
    """One Dirichlet(alpha) draw; for a tiny alpha, where every gamma variate underflows, its limit."""
    gammas: npt.NDArray[np.float64] = random.standard_gamma(alpha, members)
    total = gammas.sum()
    if not (0.0 < total < np.inf):
        corner = np.zeros(members)
        corner[random.randint(members)] = 1.0
        return corner
    proportions: npt.NDArray[np.float64] = gammas / total
    return proportions


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

    def split(prefix: str, count: int) -> Split:
        images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", (count, 28, 28))
        labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", (count,))
        pixels = images.astype(np.float32)[:, None] / np.float32(255)
        return Split((pixels - np.float32(0.2860)) / np.float32(0.3530), labels.astype(np.int64))

    return Dataset("fashion-mnist", 10, split("train", 60_000), split("t10k", 10_000))


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": _digits,
    "breast-cancer": _breast_cancer,
    "fashion-mnist": _fashion_mnist,
}
"""The data sets by name, each with the function that reads it from an optional folder."""


def _divide(
    name: str, classes: int, features: npt.NDArray[np.float64], labels: npt.NDArray[np.float64]
) -> Dataset:
    """Hold out a fixed fifth of the examples as the test set."""
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    held_out = np.sort(order[: len(labels) // 5])
    rest = np.sort(order[len(labels) // 5 :])
    examples = Split(features.astype(np.float32), labels.astype(np.int64))
    return Dataset(name, classes, examples.take(rest), examples.take(held_out))


def _bundled_table(file: str, sha256: str, skip: int) -> npt.NDArray[np.float64]:
    """A table that scikit-learn carries, read without importing scikit-learn (seconds of start-up a peer)."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DatasetMissing(f"{file} comes with scikit-learn, which is not installed: pip install folkmoot")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / file
    content = _read_verified(path, sha256, "reinstall scikit-learn")
    lines = content.decode("ascii").splitlines()
    table: npt.NDArray[np.float64] = np.loadtxt(lines, delimiter=",", skiprows=skip, dtype=np.float64)
    return table


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes, plain or gzipped, that must have this shape and the published digest.

    Format: two zero bytes, 0x08 for uint8, the number of dimensions, each dimension as uint32 big endian.
    """
    advice = (
        "install Debian's package dataset-fashion-mnist, or name a folder (data_dir) with the four IDX files "
        "of Fashion-MNIST"
    )
    plain = folder / name
    path = plain if plain.exists() else folder / f"{name}.gz"
    content = _read_verified(path, _FASHION_MNIST_SHA256[name], advice)
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    if not content.startswith(header) or len(content) != len(header) + int(np.prod(shape)):
        raise DatasetCorrupt(f"{path}: expected an IDX file of shape {shape}; {advice}")
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape)


def _read_verified(path: Path, sha256: str, advice: str) -> bytes:
    """The file's content, unpacked when its name ends in .gz, whose SHA-256 must be the given one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetMissing(f"{path} does not exist; {advice}") from None
    except OSError as error:
        raise DatasetMissing(f"{path} cannot be read ({error.strerror}); {advice}") from error
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetCorrupt(f"{path} is not a complete gzip file ({error}); {advice}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DatasetCorrupt(f"{path}: expected content with SHA-256 {sha256}, found {found}; {advice}")
    return content


_FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

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
