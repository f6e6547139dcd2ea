"""The models that experiments train, by name: small networks whose forward pass is a function of weights.

A model of one's own is any callable "package.module:factory"(shape, classes, **options) -> torch.nn.Module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from folkmoot.experiments.cells import ImpossibleCell, ModelChoice
from folkmoot.experiments.results import Setting

__all__ = ["MODELS", "ChannelsLastGradient", "Dropout", "Model", "build_model", "channels_last"]

Shape = tuple[int, ...]

_LEVELS = 1 << 16
"""Of the random numbers that decide what dropout drops."""


class Dropout(nn.Module):
    """Dropout whose mask is a buffer that the trainer fills, so that a seed decides it and nothing else.

    shape: of one example's mask: that of its activations, or one that PyTorch broadcasts to it, such as
    (channels, 1, 1) for whole channels. In evaluation it does nothing.
    """

    def __init__(self, rate: float, shape: Shape) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"the dropout rate is {rate}, expected 0 to less than 1")
        self.rate, self.shape = rate, shape
        self.dropped = min(round(rate * _LEVELS), _LEVELS - 1)
        """A unit whose 16 random bits are less than this number is dropped."""
        self.mask: torch.Tensor
        """1 for the units that are kept, 0 for the others."""
        self.register_buffer("mask", torch.ones(1), persistent=False)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return activations
        return activations * self.mask * (_LEVELS / (_LEVELS - self.dropped))


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Images (n, channels, height, width) with the channels last in memory, where CPUs convolve faster."""
    if images.shape[1] == 1:
        # Either order is the same, and only the strides tell convolutions which one is meant.
        _, _, height, width = images.shape
        return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class _ChannelsLastGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(images: torch.Tensor) -> torch.Tensor:
        return images.view_as(images)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return channels_last(gradient)


class ChannelsLastGradient(nn.Module):
    """Changes no value. After convolutions it spares them a copy of the large gradients that linear layers
    hand back with the channels first."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _ChannelsLastGradient.apply(images)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True, slots=True)
class Model:
    """A model by name."""

    build: Callable[..., nn.Module]
    summary: str
    convolutional: bool = False
    """Its four-dimensional parameters are the kernels of convolutions. On a CPU one member after the other
    then trains faster than all at once, on images with the channels last: flatten them, rather than view."""


def linear(shape: Shape, classes: int) -> nn.Module:
    """Multinomial logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), classes))


def mlp(shape: Shape, classes: int, hidden: int = 64) -> nn.Module:
    """One hidden layer of ReLU units."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, classes))


def small_cnn(shape: Shape, classes: int) -> nn.Module:
    """Two strided convolutions (8 and 16 channels) and one linear layer: quick on a CPU."""
    channels, height, width = _image(shape)
    return nn.Sequential(
        nn.Conv2d(channels, 8, kernel_size=5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * -(-height // 4) * -(-width // 4), classes),
    )


def lenet(shape: Shape, classes: int) -> nn.Module:
    """conv 20 (5 x 5), pool, conv 50 (5 x 5), pool, linear 500: the MNIST network of ByzFL. Pooling before
    ReLU gives the same values and gradients as after it, on a quarter of the numbers."""
    channels, height, width = _image(shape)
    side = [((length - 4) // 2 - 4) // 2 for length in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        ChannelsLastGradient(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(50 * side[0] * side[1], 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )


def cnn(shape: Shape, classes: int, dropout: bool = True) -> nn.Module:
    """conv 32, ReLU, conv 64 (3 x 3), pool, channel dropout 0.25, linear 128, ReLU, dropout 0.5: the MNIST
    network of Karimireddy, He, Jaggi 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", as in the code published with it."""
    channels, height, width = _image(shape)
    first, second = (Dropout(0.25, (64, 1, 1)), Dropout(0.5, (128,))) if dropout else (nn.Identity(),) * 2
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.MaxPool2d(2),
        ChannelsLastGradient(),
        first,
        nn.Flatten(),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        second,
        nn.Linear(128, classes),
    )


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ImpossibleCell(f"a convolutional model needs images (channels, height, width), found {shape}")
    return shape[0], shape[1], shape[2]


MODELS: Final[dict[str, Model]] = {
    "linear": Model(linear, "multinomial logistic regression"),
    "mlp": Model(mlp, "one hidden layer; option hidden (64)"),
    "small-cnn": Model(small_cnn, "two strided convolutions", convolutional=True),
    "lenet": Model(lenet, "two convolutions with pooling and two linear layers", convolutional=True),
    "cnn": Model(cnn, "conv 32, conv 64, linear 128; option dropout (true)", convolutional=True),
}
"""The models by the name that a specification uses."""


def find_model(choice: ModelChoice) -> Model:
    """The model that a choice names. Raises ImpossibleCell."""
    if choice.name in MODELS:
        return MODELS[choice.name]
    module, colon, attribute = choice.name.partition(":")
    if not (colon and module and attribute):
        raise ImpossibleCell(
            f"no model {choice.name!r}; known: {', '.join(MODELS)}, or package.module:factory of your own"
        )
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ImpossibleCell(f"model {choice.name!r}: {error}; is its folder on PYTHONPATH?") from None
    if not callable(factory):
        raise ImpossibleCell(f"model {choice.name!r} is no function that makes a network")
    return Model(factory, "", convolutional=False)


def build_model(choice: ModelChoice, shape: Shape, classes: int) -> nn.Module:
    """The network with random initial weights from PyTorch's present seed. Raises ImpossibleCell."""
    model = find_model(choice)
    options: dict[str, Setting] = dict(choice.options)
    try:
        network = model.build(shape, classes, **options)
    except ImpossibleCell as error:
        raise ImpossibleCell(f"model {choice.label!r} for examples {shape}: {error}") from None
    except Exception as error:
        # The code may be the user's own.
        raise ImpossibleCell(
            f"model {choice.label!r} for examples {shape}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ImpossibleCell(
            f"model {choice.label!r} makes a {type(network).__name__}, not a torch.nn.Module"
        )
    if any(isinstance(layer, _DropoutNd) for layer in network.modules()):
        raise ImpossibleCell(
            f"model {choice.label!r} has a dropout layer that no seed decides; "
            "use folkmoot.experiments.models.Dropout"
        )
    for name, _ in network.named_buffers():
        if not name.endswith("mask"):
            raise ImpossibleCell(
                f"model {choice.label!r} has the buffer {name!r}, which is no weight and would not travel; "
                "use layers without running statistics, such as GroupNorm"
            )
    return network
