"""Members that lie in training: trainers that wrap an honest one and falsify what it learned.

A malicious node is an ordinary node whose configuration names `folkmoot.experiments.adversaries:create`.
A liar sees only its own data: commitments hide the others' updates until its own is bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.attacks import (
    ATTACKS,
    AttackTarget,
    craft_updates,
    flip_labels,
    little_is_enough_z,
    resolve_parameters,
)
from folkmoot.aggregation.errors import AttackInvalid
from folkmoot.node.torch_trainer import TorchTrainer
from folkmoot.node.trainer import Config, Trainer, Weights, load_trainer

__all__ = ["ATTACK_NAMES", "UpdateFalsifier", "create"]

ATTACK_NAMES = tuple(ATTACKS)
"""Every attack that `create` knows, for command lines."""


def create(
    attack: str,
    trainer: str,
    options: Mapping[str, object],
    strength: float | None = None,
    members: int = 7,
    liars: int = 2,
    seed: int = 1,
    estimates: int = 4,
) -> Trainer:
    """A lying trainer around the honest one that `trainer` ("package.module:factory") and `options` name.

    `strength` is the attack's one number (sign-flip: factor; inner-product: epsilon; little-is-enough: z;
    gaussian: standard deviation), its default when None; label-flip takes none. `members` and `liars` give
    little-is-enough its z, and `estimates` trainings its idea of the honest spread. Raises AttackInvalid and
    the TrainerError of the honest trainer.
    """
    parameters = _parameters(attack, strength, members, liars)
    honest = load_trainer(trainer, options)
    if ATTACKS[attack].target is AttackTarget.LABELS:
        return _with_flipped_labels(honest)
    spread = estimates if attack == "little-is-enough" else 1
    return UpdateFalsifier(honest, attack, parameters, seed, spread)


@dataclass(frozen=True, slots=True, eq=False)
class UpdateFalsifier:
    """Trains honestly `estimates` times, then returns weights whose change is the attack's."""

    honest: Trainer
    attack: str
    parameters: Mapping[str, float]
    seed: int
    estimates: int

    def initial_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Those of the honest trainer."""
        return self.honest.initial_weights()

    def fit(self, weights: Weights, config: Config) -> tuple[Weights, int, dict[str, float]]:
        """The falsified weights with the honest number of examples and metrics."""
        start = _flatten(weights)
        round_number = int(config.get("round", 0))
        changes = []
        for estimate in range(self.estimates):
            varied: Config = {**config, "round": round_number * self.estimates + estimate}
            trained, examples, metrics = self.honest.fit([tensor.copy() for tensor in weights], varied)
            changes.append(_flatten(trained) - start)
        random = np.random.default_rng([self.seed, round_number, int(config.get("member", 0))])
        change = craft_updates(self.attack, np.stack(changes), 1, random, self.parameters)[0]
        limit = np.finfo(np.float32).max
        falsified = np.clip(start.astype(np.float64) + change, -limit, limit).astype(np.float32)
        ends = np.cumsum([tensor.size for tensor in weights])[:-1]
        parts = np.split(falsified, ends)
        lies = [part.reshape(tensor.shape) for part, tensor in zip(parts, weights, strict=True)]
        return lies, examples, metrics

    def evaluate(self, weights: Weights, config: Config) -> tuple[float, int, dict[str, float]]:
        """That of the honest trainer."""
        return self.honest.evaluate(weights, config)


def _parameters(attack: str, strength: float | None, members: int, liars: int) -> dict[str, float]:
    resolve_parameters(attack, {})
    names = [parameter.name for parameter in ATTACKS[attack].parameters]
    if strength is None:
        if attack == "little-is-enough":
            return resolve_parameters(attack, {"z": little_is_enough_z(members, liars)})
        return resolve_parameters(attack, {})
    if not names:
        raise AttackInvalid(f"{attack} has no strength, found {strength}; leave it out")
    return resolve_parameters(attack, {names[0]: strength})


def _with_flipped_labels(honest: Trainer) -> Trainer:
    """The same trainer on data whose labels are y -> classes - 1 - y; its test set stays true."""
    if not isinstance(honest, TorchTrainer):
        raise AttackInvalid(
            f"label-flip needs a TorchTrainer, whose training labels it can falsify; "
            f"found {type(honest).__name__}"
        )
    flipped = flip_labels(honest.train.labels, honest.classes)
    return replace(honest, train=replace(honest.train, labels=flipped))


def _flatten(weights: Weights) -> npt.NDArray[np.float32]:
    return np.concatenate([tensor.reshape(-1) for tensor in weights])
