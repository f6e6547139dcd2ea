"""The models by name have the sizes of their papers, and a model of one's own is checked before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from folkmoot.experiments.cells import BUILT_IN_MODELS, ImpossibleCell, ModelChoice
from folkmoot.experiments.models import MODELS, Dropout, build_model, channels_last, find_model

MNIST, DIGITS, CIFAR = (1, 28, 28), (64,), (3, 32, 32)

OWN = """
from torch import nn

def head(shape, classes, scale=1.0):
    return nn.Linear(shape[0], classes)

def normalised(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.Linear(8, classes))

constant = 3
"""


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def size(choice: ModelChoice, shape: tuple[int, ...]) -> int:
    return sum(p.numel() for p in build_model(choice, shape, 10).parameters())


def test_the_names_that_are_known_without_pytorch_are_the_models() -> None:
    assert set(MODELS) >= set(BUILT_IN_MODELS)


@pytest.mark.parametrize("shape", [MNIST, CIFAR])
@pytest.mark.parametrize("name", BUILT_IN_MODELS)
def test_every_model_takes_images(name: str, shape: tuple[int, ...]) -> None:
    network = build_model(ModelChoice(name), shape, 10).eval()
    assert network(torch.zeros(3, *shape)).shape == (3, 10)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_models_without_convolutions_take_rows(name: str) -> None:
    assert build_model(ModelChoice(name), DIGITS, 10)(torch.zeros(3, 64)).shape == (3, 10)


@pytest.mark.parametrize("name", ["small-cnn", "lenet", "cnn"])
def test_a_convolution_refuses_rows(name: str) -> None:
    with pytest.raises(ImpossibleCell, match=r"needs images \(channels, height, width\), found \(64,\)"):
        build_model(ModelChoice(name), DIGITS, 10)


@pytest.mark.parametrize("side", range(4, 34))
def test_the_small_convolution_fits_images_of_any_side(side: int) -> None:
    assert build_model(ModelChoice("small-cnn"), (1, side, side + 1), 7)(
        torch.zeros(2, 1, side, side + 1)
    ).shape == (2, 7)


@pytest.mark.parametrize(
    ("choice", "shape", "parameters"),
    [
        (ModelChoice("linear"), DIGITS, 64 * 10 + 10),
        (ModelChoice("mlp"), DIGITS, 64 * 64 + 64 + 64 * 10 + 10),
        (ModelChoice("mlp", (("hidden", 8),)), DIGITS, 64 * 8 + 8 + 8 * 10 + 10),
        (ModelChoice("lenet"), MNIST, 431_080),
        (ModelChoice("cnn"), MNIST, 1_199_882),
    ],
)
def test_a_model_has_the_parameters_of_its_formula(
    choice: ModelChoice, shape: tuple[int, ...], parameters: int
) -> None:
    assert size(choice, shape) == parameters


def test_the_convolution_of_the_bucketing_paper_can_do_without_dropout() -> None:
    with_it, without = (build_model(ModelChoice("cnn", (("dropout", d),)), MNIST, 10) for d in (True, False))
    assert [isinstance(layer, Dropout) for layer in with_it].count(True) == 2
    assert not any(isinstance(layer, Dropout) for layer in without)


PUBLISHED = {
    # From ByzFL, module byzfl.fed_framework.models, and the code of the bucketing paper.
    "lenet": lambda: nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    ),
    "cnn": lambda: nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10)),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("order", [channels_last, torch.Tensor.contiguous])
def test_a_published_network_has_the_same_values_and_gradients(name: str, order: Any) -> None:
    options = (("dropout", False),) if name == "cnn" else ()
    torch.manual_seed(3)
    ours, theirs = build_model(ModelChoice(name, options), MNIST, 10), PUBLISHED[name]()
    images, labels = torch.randn(8, *MNIST), torch.arange(8)
    found = []
    for model, given in ((ours, order(images)), (theirs, images)):
        nn.utils.vector_to_parameters(
            nn.utils.parameters_to_vector(ours.parameters()).detach(), model.parameters()
        )
        loss = nn.functional.cross_entropy(model(given), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found.append([loss, *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_the_channels_last_are_the_same_images(channels: int) -> None:
    images = torch.randn(2, channels, 5, 7)
    moved = channels_last(images)
    assert torch.equal(moved, images)
    assert moved.stride() == (channels * 35, 1, channels * 7, channels)


def test_dropout_multiplies_by_its_mask_in_training_and_by_nothing_after() -> None:
    layer = Dropout(0.5, (3,))
    layer.mask = torch.tensor([[1.0, 0.0, 1.0]])
    ones = torch.ones(1, 3)
    assert layer.train()(ones).tolist() == [[2, 0, 2]]
    assert layer.eval()(ones).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_dropout_rate_is_a_fraction_less_than_one(rate: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to less than 1"):
        Dropout(rate, (3,))


def test_options_that_a_model_does_not_have_are_refused() -> None:
    with pytest.raises(ImpossibleCell, match=r"model 'mlp depth=3' for examples \(64,\): .*depth"):
        build_model(ModelChoice("mlp", (("depth", 3),)), DIGITS, 10)
    with pytest.raises(ImpossibleCell, match="model 'mlp hidden=-1'"):
        build_model(ModelChoice("mlp", (("hidden", -1),)), DIGITS, 10)


@pytest.mark.usefixtures("own_models")
def test_a_model_of_ones_own_is_named_by_module_and_function() -> None:
    network = build_model(ModelChoice("networks_of_mine:head", (("scale", 2.0),)), DIGITS, 10)
    assert size(ModelChoice("networks_of_mine:head"), DIGITS) == 650
    assert network(torch.zeros(1, 64)).shape == (1, 10)


@pytest.mark.usefixtures("own_models")
def test_a_model_with_running_statistics_is_refused() -> None:
    with pytest.raises(ImpossibleCell, match=r"has the buffer '1\.running_mean'.*such as GroupNorm"):
        build_model(ModelChoice("networks_of_mine:normalised"), DIGITS, 10)


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("perceptron", "no model 'perceptron'; known: linear, .* or package.module:factory of your own"),
        ("networks_of_mine:tail", "'networks_of_mine:tail': .* no attribute 'tail'"),
        ("networks_of_yours:head", "No module named 'networks_of_yours'; is its folder on PYTHONPATH"),
        ("networks_of_mine:constant", "is no function that makes a network"),
        (":head", "no model ':head'"),
        ("networks_of_mine:", "no model 'networks_of_mine:'"),
        (".networks_of_mine:head", "is its folder on PYTHONPATH"),
    ],
)
def test_a_model_that_is_not_there_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(ImpossibleCell, match=complaint):
        find_model(ModelChoice(name))
