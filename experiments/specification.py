"""A grid as a person writes it: a TOML file, and from it the cells. Refuses whatever cannot be run.

Any value may be a list, and any section a list of tables: the grid is the product of all. Only `pre`, which
is a list by nature, needs lists in a list.

    seeds = [1, 2, 3]

    [data]
    set = "digits"

    [[partition]]
    kind = "iid"
    [[partition]]
    kind = "dirichlet"
    alpha = [0.1, 1.0]

    [model]
    name = "mlp"

    [training]
    steps = 1
    batch = 32
    lr = 0.1
    momentum = 0.9

    [federation]
    members = 10
    malicious = 2
    rounds = 100

    [[rule]]
    name = "trimmed-mean"
    pre = ["nnm"]

    [[attack]]
    name = ["sign-flip", "little-is-enough"]
"""

from __future__ import annotations

import importlib
import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from folkmoot.aggregation import SCORES, Knowledge, Lattice, RuleSpec, rule_spec
from folkmoot.aggregation.errors import AggregationError
from folkmoot.experiments.cells import (
    BUILT_IN_MODELS,
    EVALUATE_EVERY,
    HONEST,
    AttackChoice,
    Cell,
    ImpossibleCell,
    ModelChoice,
    PartitionChoice,
    Training,
)
from folkmoot.node.datasets import DATASETS, DatasetError
from folkmoot.node.errors import ConfigError, FileProblem
from folkmoot.node.partitions import PARTITIONS, find_partition
from folkmoot.node.task_file import DEFAULT_EXPONENT

__all__ = ["Grid", "grid_of", "import_plugins", "read_document", "read_grid", "told_of"]

MOST_CELLS: Final = 100_000

_DEFAULT_SCORES: Final[list[str]] = []

_KEYS: Final[dict[str, frozenset[str]]] = {
    "data": frozenset({"set"}),
    "partition": frozenset({"kind", "among", *(p.parameter for p in PARTITIONS.values() if p.parameter)}),
    "model": frozenset({"name", "options"}),
    "training": frozenset(Training.__dataclass_fields__),
    "federation": frozenset({"members", "malicious", "malicious_data", "f", "rounds", "evaluate_every"}),
    "lattice": frozenset({"bits", "exponent"}),
    "rule": frozenset({"name", "params", "pre"}),
    "attack": frozenset({"name", "params", "knowledge"}),
}
_TOP: Final = frozenset({"name", "seeds", "scores", "folder", "plugins", "search", *_KEYS})
_NEEDED: Final = ("data", "model", "training", "federation", "rule")


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a file in its order, each once, and where the data's files are."""

    name: str
    cells: tuple[Cell, ...]
    folder: Path | None
    plugins: tuple[str, ...] = ()
    """Modules that add rules, attacks, models or data sets of the user's own when they are imported."""


def read_grid(path: Path) -> Grid:
    """Read and check a whole grid. Raises FileProblem, ConfigError, which names section and way out."""
    with told_of(path):
        return grid_of(read_document(path), path.stem)


def read_document(path: Path) -> dict[str, Any]:
    """The parsed file. Raises FileProblem, ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """What is wrong with a grid becomes a ConfigError that names its file."""
    try:
        yield
    except (ImpossibleCell, AggregationError, DatasetError) as error:
        raise ConfigError(f"{path}: {error}") from None


def grid_of(document: Mapping[str, Any], name: str = "grid") -> Grid:
    """The grid of a parsed document. Raises ImpossibleCell, AggregationError."""
    _refuse_unknown("", document, _TOP)
    for section in _NEEDED:
        if section not in document:
            raise ImpossibleCell(f"the section [{section}] is missing")
    plugins = _plugins(document.get("plugins", []))
    sections = {section: _at_most(_tables(section, document.get(section, {}))) for section in _KEYS}
    if len(_seeds(document)) * math.prod(map(len, sections.values())) > MOST_CELLS:
        raise _too_many()
    scores = _scores(document.get("scores", _DEFAULT_SCORES))
    cells: dict[str, Cell] = {}
    for values in itertools.product(*sections.values()):
        chosen = dict(zip(sections, values, strict=True))
        for seed in _seeds(document):
            cell = _cell(chosen, scores, seed)
            cells.setdefault(cell.id, cell)
    folder = document.get("folder")
    if folder is not None and not isinstance(folder, str):
        raise ImpossibleCell(f"folder is {folder!r}, expected the path of a folder with the data's files")
    return Grid(
        str(document.get("name", name)),
        tuple(cells.values()),
        None if folder is None else Path(folder),
        plugins,
    )


def import_plugins(names: Sequence[str]) -> None:
    """Import modules that register something of the user's own. Raises ImpossibleCell."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ImpossibleCell(
                f"plugin {name!r} cannot be imported ({type(error).__name__}: {error}); "
                "is its folder on PYTHONPATH?"
            ) from error


def _plugins(given: object) -> tuple[str, ...]:
    names = tuple(_text(name, "plugins") for name in (given if isinstance(given, list) else [given]))
    import_plugins(names)
    return names


def _cell(chosen: Mapping[str, Mapping[str, Any]], scores: tuple[str, ...], seed: int) -> Cell:
    federation, lattice = chosen["federation"], chosen["lattice"]
    for key in ("members", "malicious", "rounds"):
        if key not in federation:
            raise ImpossibleCell(f"[federation] {key} is missing")
    for section, key in (("data", "set"), ("model", "name"), ("rule", "name")):
        if key not in chosen[section]:
            raise ImpossibleCell(f"[{section}] {key} is missing")
    malicious = _whole(federation["malicious"], "federation.malicious")
    cell_lattice = Lattice(lattice.get("bits", 16), (lattice.get("exponent", DEFAULT_EXPONENT),))
    return Cell(
        data=_data(chosen["data"]["set"]),
        partition=_partition(chosen["partition"]),
        model=_model(chosen["model"]),
        training=_training(chosen["training"]),
        rule=_rule(chosen["rule"], _whole(federation.get("f", malicious), "federation.f")),
        attack=_attack(chosen["attack"]),
        members=_whole(federation["members"], "federation.members"),
        malicious=malicious,
        rounds=_whole(federation["rounds"], "federation.rounds"),
        seed=seed,
        evaluate_every=_whole(federation.get("evaluate_every", EVALUATE_EVERY), "federation.evaluate_every"),
        bits=cell_lattice.bits,
        exponent=cell_lattice.exponents[0],
        malicious_data=_number(federation.get("malicious_data", 1.0), "federation.malicious_data"),
        scores=scores,
    )


def _at_most(tables: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of them, unless they alone are too many."""
    found = list(itertools.islice(tables, MOST_CELLS + 1))
    if len(found) > MOST_CELLS:
        raise _too_many()
    return found


def _too_many() -> ImpossibleCell:
    return ImpossibleCell(f"the grid has more than {MOST_CELLS:,} cells; divide it among several files")


def _tables(section: str, given: object) -> Iterator[dict[str, Any]]:
    """The tables that a section stands for, every list in them multiplied out."""
    tables = given if isinstance(given, list) else [given]
    if not tables:
        raise ImpossibleCell(f"[{section}] is empty; leave it out or name at least one choice")
    for table in tables:
        if not isinstance(table, dict):
            raise ImpossibleCell(f"[{section}] must be a table or a list of tables, found {table!r}")
        _refuse_unknown(section, table, _KEYS[section])
        yield from _expanded(section, table)


def _expanded(where: str, table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    choices: list[Sequence[Any]] = []
    for key, value in table.items():
        place = f"{where}.{key}"
        if isinstance(value, dict):
            choices.append(_at_most(_expanded(place, value)))
        elif isinstance(value, list) and (key != "pre" or any(isinstance(entry, list) for entry in value)):
            if not value:
                raise ImpossibleCell(f"{place} is an empty list")
            choices.append(value)
        else:
            choices.append([value])
    for values in itertools.product(*choices):
        yield dict(zip(table, values, strict=True))


def _refuse_unknown(section: str, table: Mapping[str, Any], known: frozenset[str]) -> None:
    if unknown := sorted(table.keys() - known):
        where = f"[{section}] " if section else ""
        raise ImpossibleCell(f"unknown key {where}{unknown[0]!r}; known: {', '.join(sorted(known))}")


def _partition(table: Mapping[str, Any]) -> PartitionChoice:
    partition = find_partition(_text(table.get("kind", "iid"), "partition.kind"))
    name = partition.parameter
    _refuse_unknown("partition", table, frozenset({"kind", "among", *([] if name is None else [name])}))
    value = None if name is None or name not in table else _number(table[name], f"partition.{name}")
    partition.check(value)
    return PartitionChoice(
        partition.name,
        None if name is None or value is None else (name, value),
        _text(table.get("among", "members"), "partition.among"),
    )


def _data(name: object) -> str:
    if not isinstance(name, str) or name not in DATASETS:
        raise ImpossibleCell(f"no data set {name!r}; known: {', '.join(DATASETS)}")
    return name


def _model(table: Mapping[str, Any]) -> ModelChoice:
    options = _table(table.get("options", {}), "model.options")
    for name, value in options.items():
        if not isinstance(value, str | int | float):
            raise ImpossibleCell(f"model.options.{name} is {value!r}, expected text, a number, true or false")
    choice = ModelChoice(_text(table["name"], "model.name"), tuple(sorted(options.items())))
    if choice.name not in BUILT_IN_MODELS:
        # Loads PyTorch, and maybe a module of the user's.
        from folkmoot.experiments.models import find_model

        find_model(choice)
    return choice


def _training(table: Mapping[str, Any]) -> Training:
    for key in ("lr", "batch"):
        if key not in table:
            raise ImpossibleCell(f"[training] {key} is missing")
    texts, wholes = ("optimizer", "schedule", "engine", "precision", "device"), ("batch", "steps")
    values: dict[str, Any] = {}
    for key, value in table.items():
        read = _text if key in texts else _whole if key in wholes else _number
        values[key] = read(value, f"training.{key}")
    return Training(**values)


def _rule(table: Mapping[str, Any], f: int) -> RuleSpec:
    pre = table.get("pre", [])
    if not isinstance(pre, list) or not all(isinstance(entry, str) for entry in pre):
        raise ImpossibleCell(
            f"rule.pre is {pre!r}, expected a list of pre-aggregators or a list of such lists"
        )
    params = _table(table.get("params", {}), "rule.params")
    return rule_spec(_text(table["name"], "rule.name"), f, params, pre)


def _attack(table: Mapping[str, Any]) -> AttackChoice:
    knowledge = table.get("knowledge", Knowledge.OMNISCIENT.value)
    try:
        seen = Knowledge(knowledge)
    except ValueError:
        known = ", ".join(k.value for k in Knowledge)
        raise ImpossibleCell(f"attack.knowledge is {knowledge!r}, expected one of {known}") from None
    params = tuple(sorted(_table(table.get("params", {}), "attack.params").items()))
    return AttackChoice(_text(table.get("name", HONEST), "attack.name"), params, seen)


def _scores(given: object) -> tuple[str, ...]:
    names = given if isinstance(given, list) else [given]
    for name in names:
        if _text(name, "scores") not in SCORES:
            raise ImpossibleCell(f"no score {name!r}; known: {', '.join(SCORES)}")
    return tuple(sorted(set(names)))


def _seeds(document: Mapping[str, Any]) -> list[int]:
    given = document.get("seeds", [1])
    seeds = given if isinstance(given, list) else [given]
    if not seeds:
        raise ImpossibleCell("seeds is an empty list")
    for seed in seeds:
        if not 0 <= _whole(seed, "seeds") < 2**32:
            raise ImpossibleCell(f"seed {seed} is not from 0 to 2^32 - 1")
    return seeds


def _whole(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ImpossibleCell(f"{what} is {value!r}, expected a whole number")
    return value


def _number(value: object, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ImpossibleCell(f"{what} is {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ImpossibleCell(f"{what} is too large") from None


def _table(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImpossibleCell(f"{what} is {value!r}, expected a table such as {{ name = 1 }}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ImpossibleCell(f"{what} is {value!r}, expected text")
    return value
