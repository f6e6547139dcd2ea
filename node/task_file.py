"""A task as a person writes it: a TOML file, and from it the specification and the genesis model.

name = "digits"
rounds = 5

[rule]
name = "trimmed-mean"   # docs/aggregation.md lists all
f = 2
pre = ["nnm"]           # optional: pre-aggregators, such as "nnm" or "clipping:tau=1.5"

[windows]               # seconds
commit = 600
reveal = 120
attempt = 60

[model]                 # whose initial_weights() is the genesis model
factory = "folkmoot.node.torch_trainer:create"
[model.options]
dataset = "digits"
members = 7
index = 0

[lattice]               # optional
bits = 16
exponent = -13          # of every tensor in round 0

[scores]                # optional: component = weight
similarity = 1
influence = 1

[fit]                   # optional: what every trainer is told
epochs = 2
"""

from __future__ import annotations

import dataclasses
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation import Lattice, Layout, ScoreSpec, rule_spec
from folkmoot.aggregation.errors import AggregationError
from folkmoot.node.errors import ConfigError, FileProblem
from folkmoot.node.home import Home, replace_file
from folkmoot.node.model import write_model
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.node.specification import Specification
from folkmoot.node.trainer import load_trainer
from folkmoot.p2p.types import Cid
from folkmoot.p2p.unixfs import cid_of_file

DEFAULT_EXPONENT = -13
"""With 16 bits: deltas up to 4 in steps of 1.2e-4."""

_SECTIONS = {
    "": {"name", "rounds", "rule", "windows", "model", "lattice", "scores", "fit"},
    "rule": {"name", "f", "params", "pre"},
    "windows": {"commit", "reveal", "attempt"},
    "model": {"factory", "options"},
    "lattice": {"bits", "exponent"},
}


@dataclass(frozen=True, slots=True, eq=False)
class DraftedTask:
    """A specification with the genesis model that it names."""

    specification: Specification
    genesis: npt.NDArray[np.float32]


def draft_task(path: Path) -> DraftedTask:
    """Read a task file and ask its model's factory for the genesis weights.

    Raises FileProblem, ConfigError (unknown key or bad value, with the file's name), TrainerError.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return _draft(document)
    except KeyError as error:
        raise ConfigError(f"{path}: the key {error.args[0]!r} is missing") from None
    except (AggregationError, MalformedError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _draft(document: Mapping[str, Any]) -> DraftedTask:
    for section, known in _SECTIONS.items():
        table = document.get(section, {}) if section else document
        if not isinstance(table, dict):
            raise ValueError(f"{section} must be a table")
        if unknown := sorted(table.keys() - known):
            where = f"[{section}] " if section else ""
            raise ValueError(f"unknown key {where}{unknown[0]!r}; known: {', '.join(sorted(known))}")
    params = _table(document["rule"], "rule.params")
    options = _table(document["model"], "model.options")
    fit = _table(document, "fit")
    trainer = load_trainer(_text(document["model"]["factory"], "model.factory"), options)
    weights = trainer.initial_weights()
    layout = Layout.of(weights)
    lattice, windows, rule = document.get("lattice", {}), document["windows"], document["rule"]
    exponent = _whole(lattice.get("exponent", DEFAULT_EXPONENT), "lattice.exponent")
    scores = document.get("scores")
    return _with_genesis(
        Specification(
            _text(document["name"], "name"),
            layout,
            Cid(""),
            rule_spec(
                _text(rule["name"], "rule.name"), rule["f"], params, _texts(rule.get("pre", []), "rule.pre")
            ),
            Lattice(lattice.get("bits", 16), (exponent,) * len(layout.tensors)),
            _whole(document["rounds"], "rounds"),
            _whole(windows["commit"], "windows.commit"),
            _whole(windows["reveal"], "windows.reveal"),
            _whole(windows["attempt"], "windows.attempt"),
            ScoreSpec() if scores is None else ScoreSpec.from_document(scores),
            tuple(fit.items()),
        ),
        layout.flatten(weights),
    )


def _with_genesis(draft: Specification, genesis: npt.NDArray[np.float32]) -> DraftedTask:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_model(model, draft.layout, genesis)
        return DraftedTask(dataclasses.replace(draft, genesis=cid_of_file(model)), genesis)


def _table(parent: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An optional table under its parent; `name` is the whole path."""
    value = parent.get(name.rpartition(".")[2], {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a table, found {value!r}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, found {value!r}")
    return value


def _texts(value: object, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"{what} must be a list of texts, found {value!r}")
    return value


def _whole(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number, found {value!r}")
    return value


def hand_over(task: DraftedTask, home: Home) -> None:
    """Leave specification and genesis model where this home's node picks them up for its blob store."""
    home.outbox.mkdir(parents=True, exist_ok=True)
    specification = task.specification
    write_model(home.outbox / f"{specification.genesis}.file", specification.layout, task.genesis)
    replace_file(home.outbox / f"{specification.cid}.document", specification.encode(), mode=0o644)
