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
    Attack,
    AttackTarget,
    Defence,
    Knowledge,
    craft_updates,
    flip_labels,
    little_is_enough_z,
    resolve_parameters,
    stamp_trigger,
)
from folkmoot.aggregation.errors import AttackInvalid
from folkmoot.aggregation.interface import aggregate
from folkmoot.node.torch_trainer import TorchTrainer
from folkmoot.node.trainer import Config, Trainer, Weights, load_trainer

__all__ = ["ATTACK_NAMES", "UpdateFalsifier", "create"]

ATTACK_NAMES = tuple(name for name, attack in ATTACKS.items() if Knowledge.BLIND in attack.knowledge)
"""Every attack that `create` knows, for command lines: those that need no other member's update."""


def create(
    attack: str,
    trainer: str,
    options: Mapping[str, object],
    strength: float | None = None,
    members: int = 7,
    liars: int = 2,
    seed: int = 1,
    estimates: int = 4,
    rule: str = "trimmed-mean",
    params: Mapping[str, float] | None = None,
) -> Trainer:
    """A lying trainer around the honest one that `trainer` ("package.module:factory") and `options` name.

    `strength` is the first parameter (sign-flip: factor; inner-product: epsilon; little-is-enough: z;
    gaussian: standard deviation; backdoor: fraction), its default when None; label-flip, infinity, nan and
    zero take none. `members` and `liars` give little-is-enough its z. Attacks that need to know how honest
    updates spread take it from `estimates` trainings of their own, and the optimised ones try their factor on
    `rule` with f = `liars` and its parameters `params`. infinity and nan train to what the liar's own node
    refuses to send. Raises AttackInvalid and the TrainerError of the honest trainer.
    """
    parameters = _parameters(attack, strength, members, liars)
    chosen = ATTACKS[attack]
    if estimates < chosen.fewest:
        raise AttackInvalid(f"{attack} needs {chosen.fewest} estimates or more, found {estimates}")
    honest = load_trainer(trainer, options)
    if chosen.target is not AttackTarget.UPDATES:
        return _with_falsified_data(honest, chosen, parameters, seed)
    spread = estimates if chosen.fewest > 1 else 1
    return UpdateFalsifier(honest, attack, parameters, seed, spread, members, liars, rule, dict(params or {}))


@dataclass(frozen=True, slots=True, eq=False)
class UpdateFalsifier:
    """Trains honestly `estimates` times, then returns weights whose change is the attack's."""

    honest: Trainer
    attack: str
    parameters: Mapping[str, float]
    seed: int
    estimates: int
    members: int
    liars: int
    rule: str
    rule_parameters: Mapping[str, float]

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
        change = craft_updates(
            self.attack,
            np.stack(changes),
            self.liars,
            random,
            self.parameters,
            defence=_defence(self.rule, self.liars, self.rule_parameters),
            knowledge=Knowledge.BLIND,
            members=self.members,
        )[0]
        limit = np.where(np.isfinite(change), np.finfo(np.float32).max, np.inf)
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
    if attack not in ATTACK_NAMES:
        raise AttackInvalid(f"{attack} copies what a lying node cannot see; known: {', '.join(ATTACK_NAMES)}")
    names = [parameter.name for parameter in ATTACKS[attack].parameters]
    if strength is None:
        if attack == "little-is-enough":
            return resolve_parameters(attack, {"z": little_is_enough_z(members, liars)})
        return resolve_parameters(attack, {})
    if not names:
        raise AttackInvalid(f"{attack} has no strength, found {strength}; leave it out")
    return resolve_parameters(attack, {names[0]: strength})


def _with_falsified_data(
    honest: Trainer, attack: Attack, parameters: Mapping[str, float], seed: int
) -> Trainer:
    """The same trainer on falsified training data; its test set stays true."""
    if not isinstance(honest, TorchTrainer):
        raise AttackInvalid(
            f"{attack.name} needs a TorchTrainer, whose training data it can falsify; "
            f"found {type(honest).__name__}"
        )
    train = honest.train
    if attack.target is AttackTarget.LABELS:
        return replace(honest, train=replace(train, labels=flip_labels(train.labels, honest.classes)))
    features, labels = stamp_trigger(
        train.features,
        train.labels,
        honest.classes,
        np.random.default_rng(seed),
        fraction=parameters["fraction"],
        target=int(parameters["target"]),
        size=int(parameters["size"]),
    )
    return replace(honest, train=replace(train, features=features, labels=labels))


def _defence(rule: str, liars: int, params: Mapping[str, float]) -> Defence:
    """What the liar expects its updates to meet: the task's rule, made for as many liars as there are.

    It cannot know what the others claim, so it counts every claim as the same.
    """

    def defend(updates: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        claims = [1] * len(updates) if "cap" in params else None
        defended: npt.NDArray[np.float32] = aggregate(
            updates, rule, liars, params=params, weights=claims, backend="numpy", threads=1
        )
        return defended

    return defend


def _flatten(weights: Weights) -> npt.NDArray[np.float32]:
    return np.concatenate([tensor.reshape(-1) for tensor in weights])
