"""The PyTorch trainer learns, is deterministic given its inputs, and leaves process-wide state alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from folkmoot.node.torch_trainer import TorchTrainer, create


def start(trainer: TorchTrainer) -> list[np.ndarray]:
    return list(trainer.initial_weights().values())


@pytest.mark.parametrize(("dataset", "goal"), [("digits", 0.9), ("breast-cancer", 0.92)])
def test_one_member_with_all_data_learns_the_task(dataset: str, goal: float) -> None:
    trainer = create(dataset, members=1, index=0)
    weights = start(trainer)
    before, _, _ = trainer.evaluate(weights, {})
    weights, examples, _ = trainer.fit(weights, {"round": 0})
    after, held_out, metrics = trainer.evaluate(weights, {})
    assert examples == len(trainer.train.labels)
    assert held_out == len(trainer.test.labels)
    assert after < before
    assert metrics["accuracy"] >= goal


def test_training_is_a_function_of_weights_seed_round_and_member() -> None:
    def fit(member: int, round_number: int, seed: int = 1) -> bytes:
        trainer = create("digits", members=7, index=member, seed=seed)
        shared = start(create("digits", members=7, index=0, seed=1))
        return b"".join(tensor.tobytes() for tensor in trainer.fit(shared, {"round": round_number})[0])

    torch.manual_seed(99)
    first = fit(2, 0)
    torch.manual_seed(5)
    assert fit(2, 0) == first
    assert len({first, fit(3, 0), fit(2, 1), fit(2, 0, seed=2)}) == 4


def test_members_of_a_task_start_from_the_same_weights_and_share_the_test_set() -> None:
    first, second = (create("digits", members=7, index=index) for index in (0, 6))
    for name, tensor in first.initial_weights().items():
        assert np.array_equal(tensor, second.initial_weights()[name])
        assert tensor.dtype == np.float32
    assert np.array_equal(first.test.labels, second.test.labels)


def test_training_leaves_pytorchs_threads_and_random_state_alone() -> None:
    trainer = create("breast-cancer", members=3, index=1)
    torch.set_num_threads(2)
    random_state = torch.random.get_rng_state()
    trainer.fit(start(trainer), {"round": 0})
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_what_the_task_tells_goes_before_a_members_own_settings() -> None:
    told, own = create("breast-cancer", 3, 0), create("breast-cancer", 3, 0, epochs=1, lr=0.01, batch=8)
    answers = [
        trainer.fit(start(trainer), {"round": 0, **config})[0]
        for trainer, config in ((told, {"epochs": 1, "lr": 0.01, "batch": 8}), (own, {}), (told, {}))
    ]
    first, same, other = (b"".join(tensor.tobytes() for tensor in answer) for answer in answers)
    assert first == same != other


@pytest.mark.parametrize(
    "options", [{"index": 7}, {"index": -1}, {"index": 0, "epochs": 0}, {"index": 0, "lr": -1.0}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"index must be|must be positive"):
        create("digits", members=7, **options)  # type: ignore[arg-type]
