"""A liar returns what its attack says, from its own training alone, and the robust rule survives it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from folkmoot.aggregation.attacks import stamp_trigger
from folkmoot.aggregation.errors import AttackInvalid
from folkmoot.aggregation.layout import Layout
from folkmoot.experiments.adversaries import ATTACK_NAMES, create
from folkmoot.node.torch_trainer import create as create_honest
from folkmoot.node.trainer import Trainer, TrainerError, load_trainer, run_fit

HONEST = "folkmoot.node.torch_trainer:create"
MEMBERS = 7


def options(index: int) -> dict[str, object]:
    return {"dataset": "digits", "members": MEMBERS, "index": index, "epochs": 2}


def change(trainer: Trainer, round_number: int = 0) -> np.ndarray:
    """What one round of training changes, flat."""
    weights = list(trainer.initial_weights().values())
    trained, _, _ = trainer.fit([tensor.copy() for tensor in weights], {"round": round_number, "member": 5})
    return np.concatenate([(new - old).ravel() for new, old in zip(trained, weights, strict=True)])


def lie(attack: str, strength: float | None = None, **more: int) -> np.ndarray:
    return change(create(attack, HONEST, options(5), strength=strength, **more))


def test_sign_flip_is_the_own_change_reversed_and_scaled() -> None:
    honest = change(create_honest(**options(5)))  # type: ignore[arg-type]
    assert np.allclose(lie("sign-flip", 10.0), -10 * honest, atol=1e-5)
    assert np.allclose(lie("inner-product", 0.5), -0.5 * honest, atol=1e-5)


def test_a_little_is_enough_stays_close_to_the_honest_change() -> None:
    honest = change(create_honest(**options(5)))  # type: ignore[arg-type]
    little = lie("little-is-enough")
    assert 0 < np.linalg.norm(little - honest) < np.linalg.norm(honest)
    assert not np.allclose(little, lie("little-is-enough", 3.0))


def test_gaussian_noise_has_the_asked_spread_and_its_seed_replays_it() -> None:
    noise = lie("gaussian", 2.0, seed=4)
    assert abs(float(noise.std()) - 2) < 0.1
    assert np.array_equal(noise, lie("gaussian", 2.0, seed=4))
    assert not np.array_equal(noise, lie("gaussian", 2.0, seed=5))


def test_label_flip_falsifies_the_training_labels_and_not_the_test_set() -> None:
    honest = create_honest(**options(5))  # type: ignore[arg-type]
    liar = create("label-flip", HONEST, options(5))
    weights = list(liar.initial_weights().values())
    trained, examples, _ = liar.fit(weights, {"round": 0})
    honestly, _, _ = honest.fit(weights, {"round": 0})
    assert examples == len(honest.train.labels)
    accuracy = [t.evaluate(w, {})[2]["accuracy"] for t, w in ((liar, trained), (honest, honestly))]
    assert accuracy[0] < 0.2 < 0.5 < accuracy[1]


@pytest.mark.parametrize("attack", ATTACK_NAMES)
def test_every_attack_can_be_named_in_a_nodes_configuration(attack: str) -> None:
    target = "folkmoot.experiments.adversaries:create"
    liar = load_trainer(target, {"attack": attack, "trainer": HONEST, "options": options(6)})
    lied = change(liar)
    assert np.isfinite(lied).all() == (attack not in ("infinity", "nan"))
    assert not np.array_equal(lied, change(create_honest(**options(6))))  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ["infinity", "nan"])
def test_a_liars_own_node_refuses_to_send_what_is_not_finite(attack: str) -> None:
    liar = create(attack, HONEST, options(5))
    layout = Layout.of(liar.initial_weights())
    with pytest.raises(TrainerError):
        run_fit(liar, layout.flatten(liar.initial_weights()), layout, {"round": 0, "member": 5})


def test_min_max_stays_among_the_trainings_that_it_knows() -> None:
    honest = change(create_honest(**options(5)))  # type: ignore[arg-type]
    assert 0 < np.linalg.norm(lie("min-max") - honest) < np.linalg.norm(honest)


def test_an_optimised_factor_is_tried_on_a_rule_with_its_parameters() -> None:
    tried = create("inner-product-optimised", HONEST, options(5), rule="weighted-median", params={"cap": 10})
    alike = create("inner-product-optimised", HONEST, options(5), rule="median")
    # With equal claims the weighted median is the median.
    assert np.array_equal(change(tried), change(alike))


def test_an_optimised_factor_is_tried_on_the_rule_that_is_named() -> None:
    against_mean, against_median = (
        change(create("inner-product-optimised", HONEST, options(5), rule=rule))
        for rule in ("mean", "median")
    )
    assert np.linalg.norm(against_mean) > 10 * np.linalg.norm(against_median)


def test_a_backdoor_opens_on_its_trigger_and_hides_without_it() -> None:
    chosen = {**options(5), "epochs": 10}
    honest = create_honest(**chosen)  # type: ignore[arg-type]
    images, labels = stamp_trigger(
        honest.test.features, honest.test.labels, honest.classes, np.random.default_rng(0),
        fraction=1.0, target=0, value=float(honest.train.features.max()),
    )  # fmt: skip
    triggered = replace(honest, test=replace(honest.test, features=images, labels=labels))
    weights = list(honest.initial_weights().values())
    open_to_trigger, accurate = [], []
    for trainer in (honest, create("backdoor", HONEST, chosen)):
        trained, _, _ = trainer.fit([tensor.copy() for tensor in weights], {"round": 0})
        open_to_trigger.append(triggered.evaluate(trained, {})[2]["accuracy"])
        accurate.append(honest.evaluate(trained, {})[2]["accuracy"])
    assert open_to_trigger[0] < 0.3 < 0.9 < open_to_trigger[1]
    assert accurate[1] > accurate[0] - 0.1


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(AttackInvalid, match="no attack 'bribe'"):
        create("bribe", HONEST, options(5))
    with pytest.raises(AttackInvalid, match="label-flip has no strength"):
        create("label-flip", HONEST, options(5), strength=10.0)
    with pytest.raises(TrainerError, match="refused the options"):
        create("sign-flip", HONEST, {"dataset": "digits"})
    with pytest.raises(AttackInvalid, match="cannot see"):
        create("copy", HONEST, options(5))
    with pytest.raises(AttackInvalid, match="2 estimates or more"):
        create("min-max", HONEST, options(5), estimates=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_two_sign_flippers_of_seven_break_the_mean_and_not_the_trimmed_mean(seed: int) -> None:
    assert federation("trimmed", seed) >= 0.9
    assert federation("mean", seed) < 0.5


def federation(rule: str, seed: int, rounds: int = 5, liars: int = 2) -> float:
    """Accuracy after `rounds` of seven members, two of whom flip signs by 10, in plain NumPy."""
    trainers: list[Trainer] = []
    for index in range(MEMBERS):
        chosen: dict[str, object] = {"dataset": "digits", "members": MEMBERS, "index": index, "seed": seed}
        honest = index < MEMBERS - liars
        trainers.append(load_trainer(HONEST, chosen) if honest else create("sign-flip", HONEST, chosen, 10.0))
    weights = list(trainers[0].initial_weights().values())
    for round_number in range(rounds):
        trained = [t.fit([w.copy() for w in weights], {"round": round_number})[0] for t in trainers]
        for index, start in enumerate(weights):
            changes = np.sort(np.stack([model[index] - start for model in trained]), axis=0)
            kept = changes[liars:-liars] if rule == "trimmed" else changes
            weights[index] = (start + kept.mean(axis=0)).astype(np.float32)
    return trainers[0].evaluate(weights, {})[2]["accuracy"]
