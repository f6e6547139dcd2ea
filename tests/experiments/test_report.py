"""The report of a grid says which rule holds, what is missing, and says it in the same bytes every time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from folkmoot.experiments.results import CellResult, Evaluation, Setting

RULES = (
    "mean",
    "median",
    "trimmed-mean",
    "nnm + krum",
    "geometric-median",
    "centered-clipping tau=10 steps=3",
)
ATTACKS = (
    "none",
    "sign-flip strength=10",
    "little-is-enough",
    "inner-product strength=0.5",
    "label-flip",
    "gaussian sigma=1",
)
PARTITIONS = ("iid", "dirichlet alpha=0.1", "dirichlet alpha=1")


def cell(
    accuracy: float | Sequence[float],
    *,
    auc: Mapping[str, float] | None = None,
    loss: float = 0.5,
    skipped: int = 0,
    **changes: Setting,
) -> CellResult:
    """A finished cell with these accuracies, evaluated every 10 rounds; a dot of a name is two underscores."""
    settings: dict[str, Setting] = {
        "data": "digits", "partition": "iid", "model": "mlp hidden=64", "rule": "mean", "attack": "none",
        "attack.knowledge": "none", "federation.members": 25, "federation.malicious": 5, "federation.f": 5,
        "training.lr": 0.1, "lattice.bits": 16, "seed": 1,
    }  # fmt: skip
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    values = [accuracy] if isinstance(accuracy, float) else list(accuracy)
    evaluations = tuple(Evaluation(10 * i, value, loss, "00") for i, value in enumerate(values))
    name = "|".join(f"{key}={value}" for key, value in sorted(settings.items()))
    return CellResult(name, settings, evaluations, {}, auc or {}, 0, skipped)


def plausible(
    rules: Sequence[str] = RULES,
    attacks: Sequence[str] = ATTACKS,
    partitions: Sequence[str] = PARTITIONS,
    seeds: Sequence[int] = (1, 2, 3),
    rounds: int = 200,
    **others: Setting,
) -> list[CellResult]:
    """A product of settings whose curves rise, dip under attack and differ a little between seeds."""
    found = []
    for rule, attack, partition, seed in itertools.product(rules, attacks, partitions, seeds):
        chance = random.Random(f"{rule}/{attack}/{partition}/{seed}/{sorted(others.items())}")
        held = random.Random(f"{rule}/{attack}").uniform(0.25, 1.0) if attack != "none" else 0.99
        held = 0.12 if rule == "mean" and attack.startswith("sign") else held
        top = 0.96 * held - 0.12 * partitions.index(partition) * (0.4 if attack == "none" else 1.0)
        curve = [
            min(1.0, max(0.05, 0.1 + (top - 0.1) * (1 - math.exp(-r / 45)) + chance.gauss(0, 0.02)))
            for r in range(0, rounds + 1, 10)
        ]
        blind = attack in ("none", "label-flip", "gaussian sigma=1")
        auc = (
            {} if attack == "none" else {"cosine": chance.uniform(0.4, 1), "distance": chance.uniform(0.5, 1)}
        )
        broken = rule == "mean" and attack.startswith("gaussian")
        found.append(
            cell(
                curve,
                auc=auc,
                loss=math.inf if broken else 0.4,
                rule=rule,
                attack=attack,
                partition=partition,
                seed=seed,
                attack__knowledge="none" if blind else str(others.get("knowledge", "omniscient")),
                **{key: value for key, value in others.items() if key != "knowledge"},
            )
        )
    return found


def text(folder: Path, name: str) -> str:
    return (folder / name).read_bytes().decode()
