"""From the records of all members to one report per round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from folkmoot.node.demo.summary import PHASES, Federation, RoundReport
from folkmoot.node.record import Evaluated, PhaseEntered, Record, RoundApplied, Traffic

__all__ = ["accuracy_after", "round_reports"]

Records = Mapping[int, Sequence[Record]]
"""What each member recorded, in order, by member index."""


def round_reports(federation: Federation, records: Records) -> tuple[RoundReport, ...]:
    """One report for each round that at least one honest member applied, in order.

    The chain's facts (included, scores, gas, …) are those of the first honest member that has the round;
    models, accuracies and times come from all honest ones.
    """
    applied: dict[int, dict[int, RoundApplied]] = {}
    for member in federation.honest:
        for record in records.get(member, ()):
            if isinstance(record, RoundApplied):
                applied.setdefault(record.round, {})[member] = record
    return tuple(_report(federation, records, applied[number]) for number in sorted(applied))


def accuracy_after(federation: Federation, records: Records, round_number: int) -> float | None:
    """Mean accuracy that honest members measured after a round; -1 is the genesis model."""
    found = [
        record.metrics["accuracy"]
        for member in federation.honest
        for record in records.get(member, ())
        if isinstance(record, Evaluated) and record.round == round_number and "accuracy" in record.metrics
    ]
    return fmean(found) if found else None


def _report(federation: Federation, records: Records, applied: Mapping[int, RoundApplied]) -> RoundReport:
    first = applied[min(applied)]
    weights = first.weights or {}
    return RoundReport(
        round=first.round,
        accuracy=accuracy_after(federation, records, first.round),
        included=_members(first.included),
        rejected=_members(first.rejected),
        unused=tuple(sorted(int(member) for member, weight in weights.items() if weight == 0)),
        verdicts={int(member): verdict for member, verdict in first.verdicts.items()},
        scores=first.scores,
        attempt=first.attempt,
        gas=first.gas_used,
        sent=tuple(_sent(records.get(m, ()), first.round) for m in range(federation.members)),
        phases=_phases(records, applied),
        models=tuple(sorted({record.model for record in applied.values()})),
    )


def _phases(records: Records, applied: Mapping[int, RoundApplied]) -> dict[str, float]:
    """Median seconds that honest members spent in each phase of the round."""
    spent: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for member, end in applied.items():
        entered = [r for r in records[member] if isinstance(r, PhaseEntered) and r.round == end.round]
        ends = [*(record.time for record in entered[1:]), end.time]
        mine: dict[str, float] = {}
        for record, until in zip(entered, ends, strict=bool(entered)):
            mine[record.phase] = mine.get(record.phase, 0.0) + max(0.0, until - record.time)
        for phase, seconds in mine.items():
            spent.setdefault(phase, []).append(seconds)
    return {phase: median(seconds) if seconds else 0.0 for phase, seconds in spent.items()}


def _sent(records: Sequence[Record], round_number: int) -> int | None:
    """Bytes sent during a round: the counter at its end less the counter before, which a restart resets."""
    before = 0
    for record in records:
        if isinstance(record, Traffic):
            if record.round == round_number:
                return record.sent - before if record.sent >= before else record.sent
            before = record.sent
    return None


def _members(bitmap: int) -> tuple[int, ...]:
    return tuple(index for index in range(bitmap.bit_length()) if bitmap >> index & 1)
