"""A PyTorch trainer for the tasks on real data: a small network each, plain SGD, seeded to the last bit.

Training is a function of (weights, seed, round, member); the evaluation set is the same for every member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from folkmoot.node.datasets import Split, load_dataset
from folkmoot.node.partitions import dirichlet
from folkmoot.node.trainer import Config, Weights

__all__ = ["Hyperparameters", "TorchTrainer", "create", "one_thread"]

MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """One member's local training: SGD with momentum over `epochs` passes in batches of `batch`."""

    epochs: int
    learning_rate: float
    batch: int

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.learning_rate > 0:
            raise ValueError(f"epochs, batch and lr must be positive, found {self}")


def create(
    dataset: str,
    members: int,
    index: int,
    alpha: float = 1.0,
    seed: int = 1,
    epochs: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    data_dir: str | None = None,
) -> TorchTrainer:
    """The trainer of member `index` of `members`, whose data is its part of a Dirichlet(alpha) partition.

    All members must name the same dataset, members, alpha and seed. `epochs`, `lr` and `batch` default to
    values that suit the data set; `data_dir` is the folder of its files, where it needs one. Raises
    ValueError and the errors of `datasets` and `partitions`.
    """
    if not 0 <= index < members:
        raise ValueError(f"index must be from 0 to {members - 1}, found {index}")
    data = load_dataset(dataset, None if data_dir is None else Path(data_dir))
    shares = dirichlet(data.train.labels, members, alpha, seed)
    network, default = _NETWORKS[dataset]
    return TorchTrainer(
        network=network,
        classes=data.classes,
        train=data.train.take(shares[index]),
        test=data.test,
        hyperparameters=Hyperparameters(
            epochs=default.epochs if epochs is None else epochs,
            learning_rate=default.learning_rate if lr is None else lr,
            batch=default.batch if batch is None else batch,
        ),
        seed=seed,
        member=index,
    )


@dataclass(frozen=True, slots=True, eq=False)
class TorchTrainer:
    """Trains `network()` as a classifier on `train` and evaluates it on `test`."""

    network: Callable[[], nn.Module]
    classes: int
    train: Split
    test: Split
    hyperparameters: Hyperparameters
    seed: int
    member: int

    def initial_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The network's random initial weights, the same for every member of the task."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.network()
        return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}

    def fit(self, weights: Weights, config: Config) -> tuple[Weights, int, dict[str, float]]:
        """Train; `config["round"]` seeds the order of the examples.

        A task may set "epochs", "lr" and "batch" for everybody: they go before this member's own.
        """
        own = self.hyperparameters
        chosen = Hyperparameters(
            epochs=int(config.get("epochs", own.epochs)),
            learning_rate=float(config.get("lr", own.learning_rate)),
            batch=int(config.get("batch", own.batch)),
        )
        with one_thread():
            model = self._build(weights)
            loss = self._train(model, chosen, int(config.get("round", 0)))
        trained = [tensor.numpy().copy() for tensor in model.state_dict().values()]
        return trained, len(self.train.labels), {"loss": loss}

    def evaluate(self, weights: Weights, config: Config) -> tuple[float, int, dict[str, float]]:
        """Mean cross-entropy and accuracy (a fraction) over the common test set."""
        total, correct, count = 0.0, 0, len(self.test.labels)
        with one_thread(), torch.inference_mode():
            model = self._build(weights)
            for start in range(0, count, 1000):
                labels = torch.from_numpy(self.test.labels[start : start + 1000])
                output = model(torch.from_numpy(self.test.features[start : start + 1000]))
                total += float(nn.functional.cross_entropy(output, labels, reduction="sum"))
                correct += int((output.argmax(1) == labels).sum())
        return total / count, count, {"accuracy": correct / count}

    def _train(self, model: nn.Module, chosen: Hyperparameters, round_number: int) -> float:
        """Run SGD in place; return the mean loss of the last epoch."""
        features = torch.from_numpy(self.train.features)
        labels = torch.from_numpy(self.train.labels)
        parameters = list(model.parameters())
        velocities = [torch.zeros_like(parameter) for parameter in parameters]
        random = np.random.default_rng([self.seed, round_number, self.member])
        total = 0.0
        for _ in range(chosen.epochs):
            total = 0.0
            order = torch.from_numpy(random.permutation(len(labels)))
            for picked in torch.split(order, chosen.batch):
                loss = nn.functional.cross_entropy(model(features[picked]), labels[picked])
                gradients = torch.autograd.grad(loss, parameters)
                _step(parameters, velocities, gradients, chosen.learning_rate)
                total += float(loss.detach()) * len(picked)
        return total / len(labels)

    def _build(self, weights: Weights) -> nn.Module:
        """The network with these weights, made without drawing initial ones."""
        with torch.device("meta"):
            model = self.network()
        names = list(model.state_dict())
        tensors = [torch.from_numpy(np.array(tensor, dtype=np.float32)) for tensor in weights]
        model.load_state_dict(dict(zip(names, tensors, strict=True)), assign=True)
        return model


# torch.optim imports PyTorch's compiler when it is built: two seconds and some 80 MB a peer.
@torch.no_grad()
def _step(
    parameters: Sequence[torch.Tensor],
    velocities: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    learning_rate: float,
) -> None:
    """One step of SGD in place: v <- MOMENTUM v + g, p <- p - learning_rate v."""
    for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
        velocity.mul_(MOMENTUM).add_(gradient)
        parameter.sub_(velocity, alpha=learning_rate)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: the float sums of training then have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _digits_network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _breast_cancer_network() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


def _image_network(channels: int, side: int) -> nn.Module:
    """For images (channels, side, side), where 4 divides side."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, kernel_size=5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (side // 4) ** 2, 10),
    )


_IMAGE_TRAINING = Hyperparameters(epochs=1, learning_rate=0.02, batch=64)

_NETWORKS: dict[str, tuple[Callable[[], nn.Module], Hyperparameters]] = {
    "digits": (_digits_network, Hyperparameters(epochs=10, learning_rate=0.05, batch=16)),
    "breast-cancer": (_breast_cancer_network, Hyperparameters(epochs=5, learning_rate=0.05, batch=16)),
    "fashion-mnist": (partial(_image_network, 1, 28), _IMAGE_TRAINING),
    "mnist": (partial(_image_network, 1, 28), _IMAGE_TRAINING),
    "cifar-10": (partial(_image_network, 3, 32), _IMAGE_TRAINING),
}
"""By data set: the network and the local training that suits a federation of about ten members."""
