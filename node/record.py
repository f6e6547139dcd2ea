"""What a node reports while it works: one frozen value per happening, and the JSON lines they are kept as.

The command line's displays, the demo and the tests all read these; nothing in the protocol depends on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PhaseEntered:
    """This node began to wait for something. `time` is Unix seconds, as in all records."""

    time: float
    task: int
    round: int
    attempt: int
    phase: str
    deadline: float | None = None
    """When the node stops waiting, Unix seconds; None while it waits for the chain alone."""


@dataclass(frozen=True, slots=True)
class Trained:
    time: float
    task: int
    round: int
    examples: int
    seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Accused:
    """A member was caught; the signed messages that prove it are hexadecimal."""

    time: float
    task: int
    round: int
    member: int
    offence: str
    detail: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoundApplied:
    """A finalized round was applied. Bitmaps by seat, verdicts by member."""

    time: float
    task: int
    round: int
    attempt: int
    outcome: str
    model: str
    manifest: str
    included: int
    rejected: int
    verdicts: dict[str, str]
    reasons: dict[str, str]
    weights: dict[str, float] | None
    """Share of each delivered update in the aggregate; None under a rule that sorts coordinates."""
    scores: tuple[int, ...]
    computed: bool
    """Whether this node computed the same result itself; False when it took it from the chain."""
    gas_used: int
    transaction: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the model after a round (-1 is the genesis model) is worth on this member's test data."""

    time: float
    task: int
    round: int
    loss: float
    examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something outside failed and is being retried, or a step was given up."""

    time: float
    what: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes on the wire since the node started, with the round that just ended."""

    time: float
    task: int
    round: int
    sent: int
    received: int


Record = PhaseEntered | Trained | Accused | RoundApplied | Evaluated | Trouble | Traffic
Observer = Callable[[Record], None]

_KINDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (PhaseEntered, Trained, Accused, RoundApplied, Evaluated, Trouble, Traffic)
}


def to_line(record: Record) -> str:
    """One JSON object: the record's fields and its kind under "record"."""
    return json.dumps({"record": type(record).__name__, **dataclasses.asdict(record)}, sort_keys=True)


def from_line(line: str) -> Record:
    """Inverse of to_line. Raises ValueError."""
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("record")]
        for name in ("evidence", "scores"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return kind(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record: {line[:80]!r}") from error


class RecordFile:
    """An observer that appends each record to a file of JSON lines and forgets nothing it was given."""

    def __init__(self, path: Path) -> None:
        torn = _ends_within_a_line(path)
        self._stream = path.open("a", encoding="utf-8")
        if torn:  # a crash cut the last line short; the next record starts on its own
            self._stream.write("\n")

    def __call__(self, record: Record) -> None:
        try:
            self._stream.write(to_line(record) + "\n")
            self._stream.flush()
        except OSError:
            # A full disk must not stop a round; the blob store and the journal report it in their own way.
            pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
