"""The cells of a grid in order: which settings vary, which cells differ only in their seed, and their means.

Knows settings and accuracies; draws and writes nothing.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from folkmoot.experiments.cells import HONEST
from folkmoot.experiments.results import CellResult, Setting
from folkmoot.node.errors import NodeError

__all__ = [
    "KNOWLEDGE",
    "Condition",
    "Findings",
    "NoResults",
    "UnusableResult",
    "find",
    "mean_accuracy",
    "ordered",
    "setting_text",
    "value_order",
]

RULE, ATTACK, SEED = "rule", "attack", "seed"
KNOWLEDGE = "attack.knowledge"
UNASKED = "none"
"""The knowledge of an attack that looks at nothing: it belongs beside omniscient and blind ones alike."""

_MALICIOUS, _F = "federation.malicious", "federation.f"
_FIRST = ("data", "partition", "model", _MALICIOUS, _F, "federation.members", KNOWLEDGE)
"""Settings that are named before others; those follow by name."""


class NoResults(NodeError):
    """There is no finished cell to report on."""


class UnusableResult(NodeError):
    """A cell lacks what every cell has; the message names the cell and what is missing."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One combination of the settings that vary beside rule, attack and seed; empty when none does."""

    values: tuple[tuple[str, Setting], ...]

    @property
    def label(self) -> str:
        """Such as "partition = iid, lattice.bits = 16"."""
        return ", ".join(f"{key} = {setting_text(value)}" for key, value in self.values)

    def value(self, key: str) -> Setting:
        """The setting's value here. Raises KeyError when the setting does not vary."""
        return dict(self.values)[key]


@dataclass(frozen=True, slots=True)
class Findings:
    """Results in a fixed order, with everything that a report asks of them."""

    cells: tuple[CellResult, ...]
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    """Honest members first."""
    seeds: tuple[Setting, ...]
    varying: tuple[str, ...]
    """Settings beside rule, attack and seed that take several values."""
    conditions: tuple[Condition, ...]
    index: dict[tuple[Condition, str, str], tuple[CellResult, ...]]
    """By condition, rule and attack: the cells, which differ in their seeds."""

    def samples(self, condition: Condition, rule: str, attack: str) -> tuple[CellResult, ...]:
        """The cells that differ only in their seeds, empty when none is done."""
        return self.index.get((condition, rule, attack), ())

    def mean(self, condition: Condition, rule: str, attack: str) -> float | None:
        """Mean final accuracy over the seeds, a fraction."""
        found = self.samples(condition, rule, attack)
        return mean_accuracy(found) if found else None

    def over_conditions(self, rule: str, attack: str, conditions: Iterable[Condition]) -> list[float]:
        """The means over seeds, one for each of the conditions that has cells."""
        means = (self.mean(condition, rule, attack) for condition in conditions)
        return [mean for mean in means if mean is not None]

    def combined(self, rule: str, attack: str, combine: Callable[[list[float]], float]) -> float | None:
        """What `combine` makes of the means under all conditions, None where there is no cell."""
        means = self.over_conditions(rule, attack, self.conditions)
        return combine(means) if means else None

    def lowest(self, rule: str, wanted: Mapping[str, Setting]) -> float | None:
        """The lowest mean over attacks and over the conditions with these values."""
        chosen = self.where(wanted)
        found = (mean for attack in self.attacks for mean in self.over_conditions(rule, attack, chosen))
        return min(found, default=None)

    def and_others(self, *keys: str) -> str:
        """What follows "over attacks" when `keys` are held: nothing if no other setting varies."""
        return " and all other settings" if set(self.varying) - set(keys) else ""

    def values(self, key: str) -> tuple[Setting, ...]:
        """What a setting of `varying` was, in order."""
        return ordered(key, {condition.value(key) for condition in self.conditions})

    def where(self, wanted: Mapping[str, Setting]) -> tuple[Condition, ...]:
        """The conditions with these values, all of them when none is asked for."""
        return tuple(c for c in self.conditions if all(c.value(key) == v for key, v in wanted.items()))


def find(results: Sequence[CellResult]) -> Findings:
    """Put results in order, whatever order they come in; a cell that is there twice counts once.

    Raises NoResults, UnusableResult.
    """
    if not results:
        raise NoResults("there is no finished cell to report on, expected at least 1; run the grid first")
    for result in results:
        _check(result)
    once = {tuple(sorted(r.settings.items())): r for r in sorted(results, key=lambda r: r.id, reverse=True)}
    cells = tuple(sorted(once.values(), key=_cell_order))
    varying = _varying(cells)
    index: dict[tuple[Condition, str, str], list[CellResult]] = defaultdict(list)
    knowledge = sorted({str(cell.settings.get(KNOWLEDGE, UNASKED)) for cell in cells} - {UNASKED})
    for cell in cells:
        for condition in _conditions(cell, varying, knowledge):
            index[condition, str(cell.settings[RULE]), str(cell.settings[ATTACK])].append(cell)
    return Findings(
        cells,
        tuple(sorted({str(cell.settings[RULE]) for cell in cells}, key=_natural)),
        tuple(
            sorted({str(cell.settings[ATTACK]) for cell in cells}, key=lambda a: (a != HONEST, _natural(a)))
        ),
        tuple(sorted({cell.settings[SEED] for cell in cells}, key=lambda seed: value_order(SEED, seed))),
        varying,
        tuple(sorted({key[0] for key in index}, key=_condition_order)),
        {key: tuple(found) for key, found in index.items()},
    )


def mean_accuracy(cells: Iterable[CellResult]) -> float:
    """Mean final accuracy, a fraction; the same whatever the order."""
    return fmean(cell.final.accuracy for cell in cells)


def setting_text(value: Setting) -> str:
    """A value as people write it: 0.1, 16, iid, true."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def ordered(key: str, values: Iterable[Setting]) -> tuple[Setting, ...]:
    """The values of one setting in the order in which a report names them."""
    return tuple(sorted(values, key=lambda value: value_order(key, value)))


def value_order(key: str, value: Setting) -> tuple[object, ...]:
    """Sorts the values of one setting: numbers by size, texts as people count, the attack "none" first.

    Partitions go from the most even to the most uneven: "iid" first, then each kind with its parameter
    falling (alpha, gamma and shards alike divide the more evenly the larger they are).
    """
    if isinstance(value, int | float):
        return (0, float(value), ())
    if key != "partition":
        return (1, 0.0, (key == ATTACK and value != HONEST, _natural(value)))
    kind, _, parameter = value.partition(" ")
    found = re.match(r"\w+=([-+.\w]+)", parameter)
    try:
        size = float(found[1]) if found else 0.0
    except ValueError:
        size = 0.0
    return (1, 0.0, (kind != "iid", kind, -size, value))


def _check(result: CellResult) -> None:
    lacking = [key for key in (RULE, ATTACK, SEED) if key not in result.settings]
    if lacking:
        raise UnusableResult(f"cell {result.id} lacks the setting {lacking[0]!r}; run the cell again")
    if not result.evaluations:
        raise UnusableResult(f"cell {result.id} has no evaluation, expected at least 1; run the cell again")


def _varying(cells: Sequence[CellResult]) -> tuple[str, ...]:
    values: dict[str, set[Setting | None]] = defaultdict(set)
    keys = {key for cell in cells for key in cell.settings} - {RULE, ATTACK, SEED}
    for cell, key in itertools.product(cells, keys):
        values[key].add(cell.settings.get(key))
    found = {key for key in keys if len(values[key]) > 1}
    for key in sorted(found):
        if key.startswith("attack.") and _belongs_to_attack(cells, key):
            found.discard(key)
    if {_MALICIOUS, _F} <= found and all(c.settings.get(_F) == c.settings.get(_MALICIOUS) for c in cells):
        found.discard(_F)
    return tuple(sorted(found, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key)))


def _belongs_to_attack(cells: Sequence[CellResult], key: str) -> bool:
    """Whether the setting only varies because attacks differ: no attack occurs with two values of it."""
    by_attack: dict[Setting, set[Setting | None]] = defaultdict(set)
    for cell in cells:
        by_attack[cell.settings[ATTACK]].add(cell.settings.get(key))
    return all(len(values) == 1 for values in by_attack.values())


def _conditions(cell: CellResult, varying: Sequence[str], knowledge: Sequence[str]) -> list[Condition]:
    """The conditions that a cell belongs to: one, or one for each knowledge when its attack asks for none."""
    choices: list[Sequence[Setting]] = []
    for key in varying:
        value = cell.settings.get(key, UNASKED)
        choices.append(knowledge if key == KNOWLEDGE and value == UNASKED else [value])
    return [Condition(tuple(zip(varying, values, strict=True))) for values in itertools.product(*choices)]


def _condition_order(condition: Condition) -> list[tuple[object, ...]]:
    return [value_order(key, value) for key, value in condition.values]


def _cell_order(cell: CellResult) -> tuple[object, ...]:
    """By rule, attack, then the other settings in order of their names, the seed last."""
    others = sorted(cell.settings.keys() - {RULE, ATTACK, SEED})
    return (
        _natural(str(cell.settings[RULE])),
        _natural(str(cell.settings[ATTACK])),
        [(key, value_order(key, cell.settings[key])) for key in others],
        value_order(SEED, cell.settings[SEED]),
    )


def _natural(text: str) -> tuple[object, ...]:
    """Sorts "tau=2" before "tau=10"."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return (*((0, float(p), "") if i % 2 else (1, 0.0, p) for i, p in enumerate(parts)), (2, 0.0, text))
