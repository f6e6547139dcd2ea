"""Which rule holds up best: ranked by the worst case over attacks and all other settings, means over seeds.

Says for each rule which cells it lacks; draws and writes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from folkmoot.experiments.cells import HONEST
from folkmoot.experiments.report.findings import (
    ATTACK,
    RULE,
    SEED,
    Findings,
    mean_accuracy,
    setting_text,
    value_order,
)
from folkmoot.experiments.results import CellResult, Setting

__all__ = ["Standing", "standings"]

Scenario = tuple[str, tuple[Setting | None, ...]]
"""An attack, and the values of the varying settings: what a rule has to stand."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A rule's place. Accuracies are means over seeds, fractions."""

    place: int
    """From 1; rules with equal worst cases share a place, and as many places after it stay empty."""
    rule: str
    worst: float
    """The lowest over all attacks, "none" included, and all other settings."""
    attacks: tuple[str, ...]
    """Where the worst case was found: several when they are equally bad."""
    settings: str
    """The varying settings of the worst case, the first of several: "partition = iid". Can be empty."""
    honest: float | None
    """Mean under attack "none", None without such cells."""
    mean: float
    """Over all attacks and other settings."""
    cells: int
    missing: Mapping[str, int]
    """By attack: how many cells this rule lacks that other cells lead to expect. Empty when it has all."""

    @property
    def expected(self) -> int:
        """Cells that the rule would have if it lacked none."""
        return self.cells + sum(self.missing.values())


def standings(findings: Findings) -> list[Standing]:
    """The rules, the best worst case first; equal ones by name.

    What a rule should have is every scenario that any rule has, each with every seed.
    """
    by_rule: dict[str, dict[Scenario, list[CellResult]]] = {
        rule: defaultdict(list) for rule in findings.rules
    }
    for cell in findings.cells:
        others = tuple(cell.settings.get(key) for key in findings.varying)
        by_rule[str(cell.settings[RULE])][str(cell.settings[ATTACK]), others].append(cell)
    everything = {scenario for scenarios in by_rule.values() for scenario in scenarios}
    worst = {
        rule: min(mean_accuracy(cells) for cells in scenarios.values()) for rule, scenarios in by_rule.items()
    }
    places = sorted(worst.values(), reverse=True)
    return [
        _standing(findings, places.index(worst[rule]) + 1, rule, by_rule[rule], everything)
        for rule in sorted(findings.rules, key=lambda rule: (-worst[rule], rule))
    ]


def _standing(
    findings: Findings,
    place: int,
    rule: str,
    scenarios: Mapping[Scenario, list[CellResult]],
    everything: set[Scenario],
) -> Standing:
    means = {scenario: mean_accuracy(cells) for scenario, cells in scenarios.items()}
    worst = min(means.values())
    low = [cells[0] for scenario, cells in scenarios.items() if means[scenario] == worst]
    low.sort(
        key=lambda cell: (findings.attacks.index(str(cell.settings[ATTACK])), findings.cells.index(cell))
    )
    where = [f"{k} = {setting_text(low[0].settings[k])}" for k in findings.varying if k in low[0].settings]
    honest = [mean for (attack, _), mean in means.items() if attack == HONEST]
    return Standing(
        place,
        rule,
        worst,
        tuple(dict.fromkeys(str(cell.settings[ATTACK]) for cell in low)),
        ", ".join(where),
        fmean(honest) if honest else None,
        fmean(means.values()),
        sum(len(cells) for cells in scenarios.values()),
        _missing(findings, scenarios, everything),
    )


def _scenario_order(findings: Findings, cell: CellResult) -> tuple[object, ...]:
    settings = cell.settings
    values = [value_order(key, settings[key]) for key in findings.varying if key in settings]
    return (findings.attacks.index(str(settings[ATTACK])), values)


def _missing(
    findings: Findings, scenarios: Mapping[Scenario, list[CellResult]], everything: set[Scenario]
) -> dict[str, int]:
    lacking: dict[str, int] = dict.fromkeys(findings.attacks, 0)
    for scenario in everything:
        have = {cell.settings[SEED] for cell in scenarios.get(scenario, ())}
        lacking[scenario[0]] += len(findings.seeds) - len(have)
    return {attack: count for attack, count in lacking.items() if count}
