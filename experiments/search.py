"""Hyper-parameter search: the best setting of each rule, for honest members or for the worst attack.

A rule must be judged at its best setting. The trials are cells like any others: they are kept, and a search
that was interrupted goes through the same trials again without running them twice.

    [search]
    objective = "worst"         # over the grid's attacks and partitions; or "honest", under attack "none"
    sampler = "bayesian"        # or "random", "grid"
    trials = 30
    seed = 1

    [search.space]
    "training.lr" = { low = 0.01, high = 1.0, log = true }
    "training.momentum" = [0.0, 0.9, 0.99]
    "rule.params.tau" = { low = 0.1, high = 10.0, log = true }
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from statistics import fmean
from typing import Any, Final

import optuna

from folkmoot.aggregation import RULES
from folkmoot.experiments.cells import HONEST, ImpossibleCell
from folkmoot.experiments.results import CellResult, Setting
from folkmoot.experiments.specification import Grid, grid_of

__all__ = ["SAMPLERS", "Best", "Search", "Trial", "read_search", "run_search", "trial_count"]

OBJECTIVES: Final = ("honest", "worst")
SAMPLERS: Final = ("bayesian", "random", "grid")
MOST_TRIALS: Final = 10_000
MOST: Final = 2**53
"""Bound of a range's ends: whole numbers up to it are exact as float64."""

Choice = tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from low to high, both included; whole ones where both bounds are written as such."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched. `document` is the grid's file without its [search]."""

    document: Mapping[str, Any]
    objective: str
    sampler: str
    trials: int
    seed: int
    space: Mapping[str, Range | Choice]


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried: its values by dotted name, and the objective, a fraction."""

    values: Mapping[str, Setting]
    accuracy: float


@dataclass(frozen=True, slots=True)
class Best:
    """A rule's trials, and the best of them."""

    rule: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The first of the highest objective."""
        return max(self.trials, key=lambda trial: trial.accuracy)


def read_search(document: Mapping[str, Any]) -> Search:
    """The search of a parsed grid file. Raises ImpossibleCell."""
    given = document.get("search")
    if not isinstance(given, dict) or not isinstance(given.get("space"), dict) or not given["space"]:
        raise ImpossibleCell("the file has no [search] with a [search.space]")
    known = {"objective", "sampler", "trials", "seed", "space"}
    if unknown := sorted(given.keys() - known):
        raise ImpossibleCell(f"unknown key [search] {unknown[0]!r}; known: {', '.join(sorted(known))}")
    search = Search(
        {key: value for key, value in document.items() if key != "search"},
        _one_of("search.objective", given.get("objective", "worst"), OBJECTIVES),
        _one_of("search.sampler", given.get("sampler", "bayesian"), SAMPLERS),
        _whole("search.trials", given.get("trials", 30), 1, MOST_TRIALS),
        _whole("search.seed", given.get("seed", 1), 0, 2**32 - 1),
        {name: _read_range(name, value) for name, value in given["space"].items()},
    )
    if search.sampler == "grid" and any(isinstance(r, Range) for r in search.space.values()):
        raise ImpossibleCell('sampler "grid" needs lists of values in [search.space], not ranges')
    return search


def run_search(
    search: Search,
    run: Callable[[Grid], list[CellResult]],
    tried: Callable[[str, Trial], None] = lambda rule, trial: None,
) -> list[Best]:
    """Search for each of the grid's rules; `run` runs a grid's cells, in order. The best rule comes first.

    Raises ImpossibleCell for a space that leads to impossible cells, AggregationError.
    """
    _require_used(search)
    found = []
    for number, table in enumerate(_rules(search.document)):
        found.append(_search_rule(search, {**search.document, "rule": table}, number, run, tried))
    return sorted(found, key=lambda best: (-best.best.accuracy, best.rule))


def _search_rule(
    search: Search,
    document: Mapping[str, Any],
    number: int,
    run: Callable[[Grid], list[CellResult]],
    tried: Callable[[str, Trial], None],
) -> Best:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [name for name in search.space if _applies(name, document)]
    space = {name: _distribution(search.space[name]) for name in names}
    study = optuna.create_study(direction="maximize", sampler=_sampler(search, number))
    if search.sampler == "grid":
        for values in product(*(_values(search, name) for name in names)):
            study.enqueue_trial(dict(zip(names, values, strict=True)))
    label, trials = _label(document, names), []
    for _ in range(_trials_of(search, names)):
        asked = study.ask(space)
        changed = _changed(document, asked.params)
        grid = grid_of(changed)
        results = run(grid)
        trial = Trial(dict(asked.params), objective_of(search.objective, results))
        study.tell(asked, trial.accuracy)
        trials.append(trial)
        tried(label, trial)
    return Best(label, tuple(trials))


def objective_of(objective: str, results: list[CellResult]) -> float:
    """Mean final accuracy over seeds: under attack "none", or the lowest over attacks and other settings.

    Raises ImpossibleCell when the grid has no honest cells.
    """
    groups: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for result in results:
        key = tuple(sorted((k, v) for k, v in result.settings.items() if k != "seed"))
        groups[key].append(result.final.accuracy)
    means = {key: fmean(values) for key, values in groups.items()}
    if objective == "worst":
        return min(means.values())
    honest = [mean for key, mean in means.items() if ("attack", HONEST) in key]
    if not honest:
        raise ImpossibleCell(f'objective "honest" needs attack "{HONEST}" in the grid')
    return fmean(honest)


def trial_count(search: Search) -> int:
    """How many trials all rules together have."""
    total = 0
    for table in _rules(search.document):
        total += _trials_of(search, [n for n in search.space if _applies(n, {"rule": table})])
    return total


def _trials_of(search: Search, names: list[str]) -> int:
    if search.sampler != "grid":
        return search.trials
    return prod(len(_values(search, name)) for name in names)


def _values(search: Search, name: str) -> Choice:
    values = search.space[name]
    return values if isinstance(values, tuple) else ()


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    seed = search.seed + number
    if search.sampler == "bayesian":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _distribution(values: Range | Choice) -> optuna.distributions.BaseDistribution:
    if isinstance(values, tuple):
        return optuna.distributions.CategoricalDistribution(values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return optuna.distributions.IntDistribution(values.low, values.high, log=values.log)
    return optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)


def _rules(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = document.get("rule", [])
    tables = given if isinstance(given, list) else [given]
    rules: list[dict[str, Any]] = []
    for table in tables:
        names, pre = table.get("name"), table.get("pre", [])
        befores = pre if any(isinstance(entry, list) for entry in pre) else [pre]
        rules.extend(
            {**table, "name": name, "pre": before}
            for before in befores
            for name in (names if isinstance(names, list) else [names])
        )
    return rules


def _require_used(search: Search) -> None:
    """Raises ImpossibleCell for a parameter that no rule has."""
    rules = [{"rule": table} for table in _rules(search.document)]
    for name in search.space:
        if not any(_applies(name, rule) for rule in rules):
            raise ImpossibleCell(f"[search.space] {name!r} is a parameter of no rule in the file")


def _applies(name: str, document: Mapping[str, Any]) -> bool:
    """A rule's parameter is searched for those rules that have it."""
    if not name.startswith("rule.params."):
        return True
    rule = RULES.get(str(document["rule"]["name"]))
    return rule is not None and any(p.name == name.rpartition(".")[2] for p in rule.parameters)


def _changed(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The document with dotted names set, in every table of a section that is a list."""
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    for name, value in values.items():
        section, *path = name.split(".")
        if section not in changed or not path:
            raise ImpossibleCell(f"[search.space] {name!r} names no section of the file")
        tables = changed[section] if isinstance(changed[section], list) else [changed[section]]
        for table in tables:
            *outer, last = path
            for step in outer:
                table = table.setdefault(step, {})
                if not isinstance(table, dict):
                    raise ImpossibleCell(f"[search.space] {name!r}: {step} is no table of the file")
            # Six decimals, the finest that a rule's lengths have.
            table[last] = round(value, 6) if isinstance(value, float) and section == "rule" else value
    return changed


def _label(document: Mapping[str, Any], searched: Iterable[str]) -> str:
    """Pre-aggregators and rule, with the parameters that its table fixes."""
    rule = document["rule"]
    fixed = {k: v for k, v in rule.get("params", {}).items() if f"rule.params.{k}" not in searched}
    name = " ".join([str(rule["name"]), *(f"{k}={v}" for k, v in fixed.items())])
    return " + ".join([*(str(entry) for entry in rule.get("pre", [])), name])


def _read_range(name: str, value: object) -> Range | Choice:
    if isinstance(value, list) and value:
        return tuple(value)
    if isinstance(value, dict) and {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        low, high, log = value["low"], value["high"], value.get("log", False)
        if _is_bound(low) and _is_bound(high) and low < high and isinstance(log, bool):
            if log and low <= 0:
                raise ImpossibleCell(f"[search.space] {name}: low must be more than 0 with log = true")
            return Range(low, high, bool(log))
    raise ImpossibleCell(
        f"[search.space] {name} is {value!r}, expected a list or {{ low = …, high = …, log = true }}"
    )


def _is_bound(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def _one_of(what: str, value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ImpossibleCell(f"{what} is {value!r}, expected one of {', '.join(known)}")
    return str(value)


def _whole(what: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ImpossibleCell(f"{what} is {value!r}, expected a whole number from {least} to {most}")
    return value
