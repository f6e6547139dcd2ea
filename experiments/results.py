"""What a cell of a grid found, and the files that hold it: a JSON document and a Parquet table for each cell.

Both hold nothing but what the cell's settings determine, so the same settings give the same bytes. Times and
machines belong elsewhere.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from folkmoot.node.errors import FileProblem
from folkmoot.node.home import replace_file

__all__ = [
    "CellResult",
    "Evaluation",
    "ResultDamaged",
    "Setting",
    "json_line",
    "parquet",
    "read_result",
    "read_results",
    "result_path",
    "write_result",
]

Setting = str | int | float | bool
"""A value of a cell's settings."""

_CELLS = "cells"
_COLUMNS = pa.schema(
    [
        ("cell", pa.string()),
        ("round", pa.int32()),
        ("accuracy", pa.float64()),
        ("loss", pa.float64()),
        ("model", pa.string()),
    ]
)


class ResultDamaged(FileProblem, ValueError):
    """A finished cell's files do not hold what was written into them."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The global model after `round` rounds (0: the initial one), measured on the common test set."""

    round: int
    accuracy: float
    """A fraction."""
    loss: float
    """Mean cross-entropy, in nats; infinite or NaN for a broken model."""
    model: str
    """SHA-256 of the model's float32 values, little-endian, as hex."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """One federation in memory, from its first to its last round."""

    id: str
    """First 16 hex digits of the SHA-256 of the settings."""
    settings: Mapping[str, Setting]
    """Flat, such as "rule": "nnm + trimmed-mean", "federation.members": 25, "seed": 1."""
    evaluations: tuple[Evaluation, ...]
    scores: Mapping[str, tuple[float, ...]]
    """By score: each member's mean over the rounds that included it, 0 to 1."""
    auc: Mapping[str, float]
    """By score: area under the ROC curve, honest against malicious members; absent where all are honest."""
    excluded: int
    """Updates that could not be put on the lattice, over all rounds, and so were left out."""
    skipped: int
    """Rounds that left the model as it was, because the rule could not aggregate what there was."""

    @property
    def final(self) -> Evaluation:
        """The last evaluation."""
        return self.evaluations[-1]


def result_path(folder: Path, cell: str) -> Path:
    """The JSON document of a cell; it is written last, so its being there means that the cell is done."""
    return folder / _CELLS / f"{cell}.json"


def write_result(folder: Path, result: CellResult) -> None:
    """Write a cell's table, then its document; each appears whole or not at all. Raises OSError."""
    path = result_path(folder, result.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path.with_suffix(".parquet"), parquet([result]), mode=0o644)
    replace_file(path, json_line(result), mode=0o644)


def json_line(result: CellResult) -> bytes:
    """One line of canonical JSON: the settings, the last evaluation, the scores."""
    final = result.final
    document = {
        "cell": result.id,
        "settings": dict(result.settings),
        "accuracy": final.accuracy,
        "loss": final.loss,
        "model": final.model,
        "scores": {name: list(values) for name, values in result.scores.items()},
        "auc": dict(result.auc),
        "excluded": result.excluded,
        "skipped": result.skipped,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def parquet(results: Sequence[CellResult]) -> bytes:
    """A table with one row for each evaluation: cell, round, accuracy, loss, model."""
    rows = [(r.id, e.round, e.accuracy, e.loss, e.model) for r in results for e in r.evaluations]
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in _COLUMNS]
    table = pa.table(dict(zip(_COLUMNS.names, columns, strict=True)), schema=_COLUMNS)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def read_results(folder: Path) -> list[CellResult]:
    """Every finished cell of a folder, in order of its id. Raises OSError, ResultDamaged."""
    return [read_result(path) for path in sorted((folder / _CELLS).glob("*.json"))]


def read_result(path: Path) -> CellResult:
    """A finished cell from its document and table. Raises OSError, ResultDamaged."""
    try:
        document = json.loads(path.read_bytes())
        rows = pq.read_table(path.with_suffix(".parquet")).to_pylist()
        return _result(document, rows)
    except (KeyError, TypeError, AttributeError, ValueError, FileNotFoundError, pa.ArrowException) as error:
        raise ResultDamaged(f"{path} is damaged ({error}); remove it and run the grid again") from None


def _result(document: Any, rows: Sequence[Mapping[str, object]]) -> CellResult:
    return CellResult(
        document["cell"],
        document["settings"],
        tuple(_evaluations(rows)),
        {name: tuple(values) for name, values in document["scores"].items()},
        document["auc"],
        document["excluded"],
        document["skipped"],
    )


def _evaluations(rows: Sequence[Mapping[str, object]]) -> Iterator[Evaluation]:
    for row in rows:
        yield Evaluation(**{name: value for name, value in row.items() if name != "cell"})  # type: ignore[arg-type]
