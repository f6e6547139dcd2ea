"""Local training in detail: momentum and decay by their formulas, rounds of epochs, schedules at work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from folkmoot.experiments.cells import ModelChoice, Training
from folkmoot.experiments.models import Dropout, build_model
from folkmoot.experiments.training import Batches, LocalTraining, learning_rate
from folkmoot.node.datasets import Split

SEED, ROUNDS = 5, 6


def splits(*sizes: int) -> list[Split]:
    random = np.random.default_rng(SEED)
    return [Split(random.standard_normal((n, 6), np.float32), random.integers(0, 3, n)) for n in sizes]


def network() -> nn.Module:
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def dropping() -> nn.Module:
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(6, 32), Dropout(0.5, (32,)), nn.Linear(32, 3))


def flat(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in model.parameters()])


def load(model: nn.Module, weights: np.ndarray) -> None:
    nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), model.parameters())


def trainer(
    training: Training,
    data: Sequence[Split],
    *,
    model: nn.Module | None = None,
    vectorised: bool = False,
    convolutional: bool = False,
    numbers: Sequence[int] | None = None,
) -> LocalTraining:
    chosen = network() if model is None else model
    members = range(len(data)) if numbers is None else numbers
    return LocalTraining(
        chosen,
        training,
        ROUNDS,
        data,
        members,
        SEED,
        vectorised=vectorised,
        convolutional=convolutional,
    )


def moved(start: np.ndarray, number: int) -> np.ndarray:
    """The global model of a round: what others did to it between two rounds."""
    return start + np.float32(0.1) * np.random.default_rng([SEED, number]).standard_normal(
        start.size, np.float32
    )


def reference(
    optimizer: torch.optim.Optimizer, model: nn.Module, data: Split, steps: int
) -> list[np.ndarray]:
    """A member's models after each of three rounds that begin from `moved`, by PyTorch's own optimizer."""
    start, batches, found = flat(model), Batches(len(data.labels), SEED, 0), []
    for number in range(3):
        load(model, moved(start, number))
        for step in range(number * steps, (number + 1) * steps):
            picked = batches.take(step * 8, 8)
            optimizer.zero_grad()
            output = model(torch.from_numpy(data.features[picked]))
            nn.functional.cross_entropy(output, torch.from_numpy(data.labels[picked])).backward()
            optimizer.step()
        found.append(flat(model))
    return found


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_momentum_is_pytorchs_with_dampening_and_a_first_average_of_zero(decay: float) -> None:
    (data,), model = splits(21), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, dampening=0.9, weight_decay=decay)
    for parameter in model.parameters():
        # PyTorch would begin with the whole first gradient; the formula begins with 1 - momentum of it.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    expected = reference(optimizer, model, data, steps=2)
    training = Training(lr=0.3, batch=8, steps=2, momentum=0.9, weight_decay=decay)
    ours, start = trainer(training, [data]), flat(network())
    found = [ours.train(moved(start, number), number)[0].copy() for number in range(3)]
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_pytorchs_though_others_move_the_model_between_rounds(decay: float) -> None:
    (data,), model = splits(21), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.9, 0.999), weight_decay=decay)
    expected = reference(optimizer, model, data, steps=2)
    training = Training(lr=0.05, batch=8, steps=2, optimizer="adam", momentum=0.9, weight_decay=decay)
    ours, start = trainer(training, [data]), flat(network())
    found = [ours.train(moved(start, number), number)[0].copy() for number in range(3)]
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("vectorised", [False, True])
def test_a_round_of_epochs_has_as_many_batches_as_the_examples_fill_rounded_up(vectorised: bool) -> None:
    data, start = splits(30, 45, 7), flat(network())
    together = trainer(Training(lr=0.3, batch=10, epochs=1), data, vectorised=vectorised).train(start, 0)
    for member, steps in enumerate((3, 5, 1)):
        alone = trainer(Training(lr=0.3, batch=10, steps=steps), [data[member]], numbers=[member])
        assert np.allclose(together[member], alone.train(start, 0)[0], atol=1e-6)


def test_a_part_of_an_epoch_is_one_batch_at_least() -> None:
    data, start = splits(7), flat(network())
    part = trainer(Training(lr=0.3, batch=10, epochs=0.01), data).train(start, 0)
    assert np.array_equal(part, trainer(Training(lr=0.3, batch=10, steps=1), data).train(start, 0))


@pytest.mark.parametrize("number", [0, 3, 5])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_a_round_trains_with_the_rate_of_its_schedule(schedule: str, number: int) -> None:
    data, start = splits(20), flat(network())
    training = Training(lr=0.3, batch=8, steps=1, schedule=schedule)
    scheduled = trainer(training, data).train(start, number)
    constant = trainer(Training(lr=learning_rate(training, number, ROUNDS), batch=8, steps=1), data)
    assert np.array_equal(scheduled, constant.train(start, number))


@pytest.mark.parametrize(("rounds", "ends"), [(9, (3, 6)), (10, (4, 7)), (2, (1, 2))])
def test_the_steps_schedule_divides_the_rate_after_each_third(rounds: int, ends: tuple[int, int]) -> None:
    training = Training(lr=1.0, batch=1, steps=1, schedule="step")
    expected = [0.1 ** sum(number >= end for end in ends) for number in range(rounds)]
    assert np.allclose([learning_rate(training, number, rounds) for number in range(rounds)], expected)


@pytest.mark.parametrize("model", [network, dropping])
@pytest.mark.parametrize("vectorised", [False, True])
def test_the_same_training_twice_gives_the_same_bytes(model, vectorised: bool) -> None:
    data, start = splits(9, 20), flat(model())
    training = Training(lr=0.3, batch=4, epochs=1, momentum=0.9)
    found = []
    for _ in range(2):
        ours = trainer(training, data, model=model(), vectorised=vectorised)
        found.append([ours.train(start, number).tobytes() for number in range(3)])
    assert found[0] == found[1]


@pytest.mark.parametrize("vectorised", [False, True])
def test_dropout_of_a_member_does_not_depend_on_who_else_trains(vectorised: bool) -> None:
    data, start = splits(9, 20, 12), flat(dropping())
    training = Training(lr=0.3, batch=4, steps=3)
    everybody = trainer(training, data, model=dropping(), vectorised=vectorised).train(start, 0)
    pair = trainer(training, [data[0], data[2]], model=dropping(), vectorised=vectorised, numbers=[0, 2])
    assert np.allclose(pair.train(start, 0), everybody[[0, 2]], atol=1e-6)


def test_dropout_drops_its_share_and_scales_up_what_is_left() -> None:
    torch.manual_seed(SEED)
    layer = Dropout(0.75, (200,))
    found: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, given, output: found.append(output / given[0]))
    model = nn.Sequential(nn.Linear(6, 200), layer, nn.Linear(200, 3))
    trainer(Training(lr=0.3, batch=4, steps=2), splits(20), model=model).train(flat(model), 0)
    first, second = found
    assert set(first.unique().tolist()) == {0.0, 4.0}
    assert (first == 0).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert not torch.equal(first, second)


def pictures(*sizes: int, side: int = 12) -> list[Split]:
    random = np.random.default_rng(SEED)
    return [
        Split(random.standard_normal((n, 1, side, side), np.float32), random.integers(0, 3, n)) for n in sizes
    ]


@pytest.mark.parametrize("name", ["small-cnn", "cnn"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_engines_agree_on_networks_for_images(name: str, momentum: float) -> None:
    data, found = pictures(9, 20), []
    training = Training(lr=0.1, batch=4, steps=3, momentum=momentum)
    for vectorised in (False, True):
        torch.manual_seed(SEED)
        model = build_model(ModelChoice(name), (1, 12, 12), 3)
        start = flat(model)
        ours = trainer(training, data, model=model, vectorised=vectorised, convolutional=True)
        found.append(ours.train(start, 0).copy())
    assert np.allclose(*found, atol=1e-5)
    assert not np.allclose(found[0], start, atol=1e-3)


@pytest.mark.parametrize("vectorised", [False, True])
def test_bfloat16_moves_a_member_as_float32_does_within_a_tenth(vectorised: bool) -> None:
    data, found = pictures(40), {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(SEED)
        model = build_model(ModelChoice("small-cnn"), (1, 12, 12), 3)
        start = flat(model)
        training = Training(lr=0.1, batch=20, steps=1, precision=precision)
        ours = trainer(training, data, model=model, vectorised=vectorised, convolutional=True)
        found[precision] = ours.train(start, 0) - start
    exact, rounded = found["float32"], found["bfloat16"]
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.1


class Viewing(nn.Module):
    """A convolution whose author takes it for granted that the channels come first in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.head = nn.Conv2d(1, 4, 3), nn.Linear(400, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.kernels(images)
        return self.head(found.view(len(found), -1))


def test_a_network_of_ones_own_gets_images_with_the_channels_first() -> None:
    torch.manual_seed(SEED)
    model, data = Viewing(), pictures(9)
    start = flat(model)
    trained = trainer(Training(lr=0.1, batch=4, steps=2), data, model=model).train(start, 0)
    assert not np.allclose(trained[0], start, atol=1e-3)


def test_one_member_alone_trains_on_one_thread() -> None:
    before, found = torch.get_num_threads(), set()
    torch.manual_seed(SEED)
    model, data = build_model(ModelChoice("lenet"), (1, 28, 28), 10), pictures(40, side=28)
    start = flat(model)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            ours = trainer(Training(lr=0.1, batch=32, steps=2), data, model=model, convolutional=True)
            found.add(ours.train(start, 0).tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("vectorised", [False, True])
def test_the_moves_are_what_training_changed(vectorised: bool) -> None:
    data, start = splits(9, 20), flat(network())
    training, moves = Training(lr=0.3, batch=4, steps=2), np.empty((2, start.size), np.float32)
    trained = trainer(training, data, vectorised=vectorised).train(start, 0)
    trainer(training, data, vectorised=vectorised).move(start, 0, moves)
    assert np.array_equal(moves, trained - start)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_members_with_less_to_do_keep_their_momentum_while_others_train(optimizer: str) -> None:
    data, start = splits(30, 45, 7), flat(network())
    training = Training(lr=0.03, batch=10, epochs=1, optimizer=optimizer, momentum=0.9)
    together, loop = trainer(training, data, vectorised=True), trainer(training, data)
    for number in range(3):
        model = moved(start, number)
        assert np.allclose(together.train(model, number), loop.train(model, number), atol=1e-5)


def test_members_with_the_same_examples_see_them_in_different_orders() -> None:
    (data,), start = splits(20), flat(network())
    one, other = trainer(Training(lr=0.3, batch=4, steps=3), [data, data]).train(start, 0)
    assert not np.allclose(one, other, atol=1e-3)


def test_the_trained_model_is_another_array_than_the_global_one() -> None:
    data, start = splits(20), flat(network())
    before = start.copy()
    trainer(Training(lr=0.3, batch=4, steps=3), data).train(start, 0)
    assert np.array_equal(start, before)
