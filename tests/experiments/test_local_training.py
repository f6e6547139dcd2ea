"""Local training: which examples a member sees, what an optimizer makes of them, and that engines agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from folkmoot.experiments.cells import Training
from folkmoot.experiments.models import Dropout, linear, mlp
from folkmoot.experiments.training import Batches, LocalTraining, learning_rate
from folkmoot.node.datasets import Split


def splits(*sizes: int, seed: int = 1) -> list[Split]:
    random = np.random.default_rng(seed)
    return [
        Split(random.standard_normal((size, 6), np.float32), random.integers(0, 3, size)) for size in sizes
    ]


def network(build=mlp, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build((6,), 3)


def flat(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in model.parameters()])


def training_of(
    data: list[Split],
    training: Training,
    *,
    build=mlp,
    vectorised: bool = False,
    members=None,
    rounds: int = 10,
) -> LocalTraining:
    numbers = range(len(data)) if members is None else members
    return LocalTraining(network(build), training, rounds, data, numbers, 7, vectorised=vectorised)


@given(st.integers(1, 9), st.integers(0, 30), st.integers(1, 20), st.integers(1, 20))
def test_batches_are_a_function_of_their_position(examples, start, first, second):
    batches = Batches(examples, 3, 1)
    together = batches.take(start, first + second)
    again = Batches(examples, 3, 1)
    apart = np.concatenate([again.take(start, first), again.take(start + first, second)])
    assert together.tolist() == apart.tolist()


def test_every_pass_shows_every_example_once_in_another_order():
    batches = Batches(50, 3, 1)
    passes = [batches.take(50 * number, 50).tolist() for number in range(3)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert Batches(50, 3, 2).take(0, 50).tolist() != passes[0]


def examples_of(split: Split, member: int, step: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    picked = Batches(len(split.labels), 7, member).take(step * batch, batch)
    return torch.from_numpy(split.features[picked]), torch.from_numpy(split.labels[picked])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_without_momentum_is_pytorchs(weight_decay):
    (data,) = splits(20)
    model = network()
    start = flat(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=weight_decay)
    for step in range(3):
        features, labels = examples_of(data, 0, step, 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
    ours = training_of([data], Training(lr=0.2, batch=8, steps=3, weight_decay=weight_decay))
    assert np.allclose(ours.train(start, 0)[0], flat(model), atol=1e-6)


def test_adam_is_pytorchs_and_keeps_its_state_from_round_to_round():
    (data,) = splits(20)
    model = network()
    ours = training_of([data], Training(lr=0.05, batch=8, steps=2, optimizer="adam", momentum=0.9))
    weights = flat(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for number in range(2):
        weights = ours.train(weights, number)[0].copy()
        for step in (2 * number, 2 * number + 1):
            features, labels = examples_of(data, 0, step, 8)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features), labels).backward()
            optimizer.step()
    assert np.allclose(weights, flat(model), atol=1e-5)


def test_a_member_keeps_its_momentum_from_round_to_round():
    (data,) = splits(20)
    start = flat(network())
    ours = training_of([data], Training(lr=1.0, batch=20, steps=1, momentum=0.5))
    plain = training_of([data], Training(lr=1.0, batch=20, steps=1))
    gradient = start - plain.train(start, 0)[0]
    first = start - ours.train(start, 0)[0]
    # From the same model, with batches that are all the examples: the gradient is the same again.
    second = start - ours.train(start, 1)[0]
    assert np.allclose(first, 0.5 * gradient, atol=1e-6)
    assert np.allclose(second, 0.75 * gradient, atol=1e-5)


@pytest.mark.parametrize("training", [
    Training(lr=0.3, batch=4, steps=3, momentum=0.9),
    Training(lr=0.3, batch=4, epochs=1.5),
    Training(lr=0.05, batch=4, epochs=2, optimizer="adam", momentum=0.9),
])  # fmt: skip
@pytest.mark.parametrize("build", [linear, mlp])
def test_all_members_at_once_learn_what_each_learns_alone(training, build):
    data = splits(9, 20, 5)
    start = flat(network(build))
    together = training_of(data, training, build=build, vectorised=True)
    loop = training_of(data, training, build=build)
    for number in range(2):
        everybody, apart = together.train(start, number).copy(), loop.train(start, number).copy()
        assert np.allclose(everybody, apart, atol=1e-5)
        start = apart[1]


def test_a_member_learns_the_same_whoever_else_trains():
    data = splits(9, 20, 5)
    start = flat(network())
    training = Training(lr=0.3, batch=4, steps=3, momentum=0.9)
    everybody = training_of(data, training).train(start, 0)
    alone = training_of([data[1]], training, members=[1]).train(start, 0)
    assert alone[0].tobytes() == everybody[1].tobytes()


def test_threads_change_no_byte():
    data = splits(9, 20, 5, 8)
    start = flat(network())
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(training_of(data, Training(lr=0.3, batch=4, steps=3)).train(start, 0).tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def with_dropout(shape, classes):
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Dropout(0.5, (16,)), nn.Linear(16, classes))


def test_dropout_follows_the_seed_in_either_engine():
    data = splits(9, 20)
    start = flat(network(with_dropout))
    training = Training(lr=0.3, batch=4, steps=3)
    loop = training_of(data, training, build=with_dropout).train(start, 0)
    together = training_of(data, training, build=with_dropout, vectorised=True).train(start, 0)
    again = training_of(data, training, build=with_dropout).train(start, 0)
    without = training_of(data, training, build=lambda s, c: with_dropout_off(s, c)).train(start, 0)
    assert np.allclose(loop, together, atol=1e-5)
    assert loop.tobytes() == again.tobytes()
    assert not np.allclose(loop, without, atol=1e-3)


def with_dropout_off(shape, classes):
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Identity(), nn.Linear(16, classes))


def test_the_learning_rate_follows_its_schedule():
    rates = {
        schedule: [
            learning_rate(Training(lr=1.0, batch=1, steps=1, schedule=schedule), r, 6) for r in range(6)
        ]
        for schedule in ("constant", "cosine", "step")
    }
    assert rates["constant"] == [1.0] * 6
    assert np.allclose(rates["step"], [1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates["cosine"][0] == 1.0
    assert np.isclose(rates["cosine"][3], 0.5)
    assert sorted(rates["cosine"], reverse=True) == rates["cosine"]
