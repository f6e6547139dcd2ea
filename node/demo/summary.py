"""What came of one demonstration, as plain values, whether it passed, and its JSON document."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

__all__ = [
    "GOAL",
    "PHASES",
    "AuditVerdict",
    "DemoSummary",
    "Federation",
    "RoundReport",
    "failures",
    "write_summaries",
]

GOAL = 0.85
"""The accuracy that a demonstration must reach."""

PHASES = ("train", "commit", "reveal", "vote", "attest", "finalize")
"""A round's phases in their order, by the names that nodes record."""

MAX_SCORE = 2**16 - 1


@dataclass(frozen=True, slots=True)
class Federation:
    """What was started. Members are numbered by their seat in the registry, from 0."""

    dataset: str
    members: int
    malicious: tuple[int, ...]
    attack: str | None
    """The attack as a person reads it, for example "sign-flip x10"; None when nobody lies."""
    rule: str
    max_faulty: int
    """The f that the rule was told to survive."""
    rounds: int
    alpha: float
    seed: int
    chain: str

    @property
    def honest(self) -> tuple[int, ...]:
        """Members that follow the protocol with true updates."""
        return tuple(member for member in range(self.members) if member not in self.malicious)


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One finalized round."""

    round: int
    accuracy: float | None
    """Fraction of the test set that the round's model gets right, mean over the honest members' tests."""
    included: tuple[int, ...]
    rejected: tuple[int, ...]
    unused: tuple[int, ...]
    """Included members whose update the rule gave weight zero; empty for rules that sort coordinates."""
    verdicts: dict[int, str]
    """By member; "delivered" is the good one."""
    scores: tuple[int, ...]
    """Contribution by member, 0 to 65535."""
    attempt: int
    gas: int
    sent: tuple[int | None, ...]
    """Bytes that each member sent on the wire during the round; None where its record lacks it."""
    phases: dict[str, float]
    """Seconds by phase, median over the honest members."""
    models: tuple[str, ...]
    """The distinct models (CIDs) that honest members hold after the round: one, unless they forked."""


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """What `folkmoot audit` said: its exit code 0 and its lines."""

    held: bool
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """A whole demonstration: `seconds` from the start to the end of the audit, `folder` with its files."""

    federation: Federation
    genesis_accuracy: float | None
    rounds: tuple[RoundReport, ...]
    audit: AuditVerdict
    seconds: float
    folder: str

    @property
    def accuracy(self) -> float | None:
        """That of the last finalized round."""
        return self.rounds[-1].accuracy if self.rounds else self.genesis_accuracy

    @property
    def contributions(self) -> tuple[float, ...]:
        """Mean score by member over all rounds, as a fraction of the largest possible score."""
        if not self.rounds:
            return (0.0,) * self.federation.members
        columns = zip(*(report.scores for report in self.rounds), strict=True)
        return tuple(fmean(column) / MAX_SCORE for column in columns)


def failures(summary: DemoSummary, goal: float = GOAL) -> tuple[str, ...]:
    """Every reason why the demonstration did not pass, one sentence each; empty when it did."""
    reasons = []
    finalized = {report.round for report in summary.rounds}
    missing = [str(r) for r in range(summary.federation.rounds) if r not in finalized]
    if missing:
        reasons.append(f"round {', '.join(missing)} was not finalized")
    for report in summary.rounds:
        if len(report.models) > 1:
            reasons.append(
                f"after round {report.round} honest members hold {len(report.models)} different models"
            )
    if summary.accuracy is None:
        reasons.append("no honest member reported an accuracy")
    elif summary.accuracy < goal:
        reasons.append(f"accuracy is {summary.accuracy:.3f}, expected at least {goal:.2f}")
    if not summary.audit.held:
        reasons.append("the audit does not hold")
    return tuple(reasons)


def write_summaries(path: Path, summaries: Sequence[DemoSummary], goal: float = GOAL) -> None:
    """Write summary.json: one entry under "runs" for each demonstration. Whole or not at all.

    Rounds and members count from 0 in the document, as they do on the chain.
    """
    runs = []
    for summary in summaries:
        runs.append(
            {
                **dataclasses.asdict(summary),
                "accuracy": summary.accuracy,
                "contributions": list(summary.contributions),
                "failures": list(failures(summary, goal)),
            }
        )
    text = json.dumps({"version": 1, "goal": goal, "runs": runs}, indent=2) + "\n"
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
