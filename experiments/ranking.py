"""Which rule holds up best: by the worst case over attacks and all other settings, means over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from folkmoot.experiments.cells import HONEST
from folkmoot.experiments.results import CellResult, Setting

__all__ = ["WorstCase", "worst_cases"]


_Key = tuple[tuple[str, Setting], ...]


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A rule's lowest mean accuracy over seeds, the attack and the other settings where it was found."""

    rule: str
    worst: float
    attack: str
    honest: float | None
    """Mean accuracy under attack "none", None without such cells."""
    mean: float
    """Over all attacks and settings."""


def worst_cases(results: Iterable[CellResult]) -> list[WorstCase]:
    """The rules, the best worst case first; ties by name."""
    found: dict[str, dict[_Key, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        settings = result.settings
        others = tuple(sorted((k, v) for k, v in settings.items() if k not in ("rule", "seed")))
        found[str(settings["rule"])][others].append(result.final.accuracy)
    return sorted((_worst(rule, groups) for rule, groups in found.items()), key=lambda c: (-c.worst, c.rule))


def _worst(rule: str, groups: dict[_Key, list[float]]) -> WorstCase:
    means = {key: fmean(values) for key, values in groups.items()}
    where = min(means, key=lambda key: (means[key], str(key)))
    honest = [mean for key, mean in means.items() if dict(key)["attack"] == HONEST]
    return WorstCase(
        rule,
        means[where],
        str(dict(where)["attack"]),
        fmean(honest) if honest else None,
        fmean(means.values()),
    )
