"""The tables at the end of a demonstration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from folkmoot.node.demo.summary import GOAL, MAX_SCORE, PHASES, DemoSummary, failures

__all__ = ["comparison_table", "print_report"]


def print_report(console: Console, summary: DemoSummary, goal: float = GOAL) -> None:
    """Print rounds, phases, contributions, the audit and the verdict of one demonstration."""
    console.print(
        Group(
            _rounds_table(summary),
            _phases_table(summary),
            _members_table(summary),
            _audit(summary),
            _verdict(summary, goal),
        )
    )


def comparison_table(summaries: Sequence[DemoSummary], goal: float = GOAL) -> Table:
    """One line per rule: accuracy by round, what the malicious members' contribution came to, the audit."""
    table = Table(
        title="The same attack under each rule: accuracy by round, scores of honest members and liars",
        title_justify="left",
        padding=(0, 1, 0, 0),
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("rule", no_wrap=True)
    rounds = max((summary.federation.rounds for summary in summaries), default=0)
    for number in range(rounds):
        table.add_column(f"r{number}", justify="right")
    table.add_column("honest", justify="right")
    table.add_column("liars", justify="right")
    table.add_column("audit")
    table.add_column("goal")
    for summary in summaries:
        by_round = {report.round: report.accuracy for report in summary.rounds}
        shares = summary.contributions
        federation = summary.federation
        reached = summary.accuracy is not None and summary.accuracy >= goal
        done = f"{len(summary.rounds)}/{federation.rounds}"
        table.add_row(
            federation.rule,
            *(_fraction(by_round.get(number)) for number in range(rounds)),
            _mean(shares[member] for member in federation.honest),
            _mean(shares[member] for member in federation.malicious),
            Text(f"holds {done}", style="green")
            if summary.audit.held
            else Text(f"FAILS {done}", style="bold red"),
            Text("yes", style="green") if reached else Text("no", style="bold red"),
        )
    return table


def _rounds_table(summary: DemoSummary) -> RenderableType:
    federation = summary.federation
    attack = f", members {_seats(federation.malicious)} malicious ({federation.attack})"
    table = Table(
        title=f"{federation.dataset}: {federation.members} members, rule {federation.rule}"
        f"{attack if federation.malicious else ''}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("round", justify="right")
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("included", min_width=8)
    table.add_column("rejected")
    table.add_column("unused")
    table.add_column("try", justify="right")
    table.add_column("gas", justify="right", no_wrap=True)
    table.add_column("kB/peer", justify="right")
    table.add_column("s", justify="right")
    if summary.genesis_accuracy is not None:
        table.add_row("start", _fraction(summary.genesis_accuracy))
    for report in summary.rounds:
        rejected = [f"{member} {report.verdicts.get(member, 'rejected')}" for member in report.rejected]
        table.add_row(
            str(report.round),
            _fraction(report.accuracy),
            _seats(report.included),
            ", ".join(rejected) or "none",
            _seats(report.unused),
            str(report.attempt),
            f"{report.gas:,}",
            _spread(report.sent),
            f"{sum(report.phases.values()):.1f}",
        )
    return table


def _phases_table(summary: DemoSummary) -> Table:
    table = Table(
        title="Seconds by phase (median of the honest members)",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("round", justify="right")
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for report in summary.rounds:
        table.add_row(str(report.round), *(f"{report.phases.get(phase, 0.0):.2f}" for phase in PHASES))
    return table


def _members_table(summary: DemoSummary) -> Table:
    table = Table(
        title="Contribution scores (0 to 1)",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("member", justify="right")
    table.add_column("role")
    for report in summary.rounds:
        table.add_column(f"r{report.round}", justify="right")
    table.add_column("mean", justify="right")
    for member, mean in enumerate(summary.contributions):
        malicious = member in summary.federation.malicious
        table.add_row(
            str(member),
            Text("malicious", style="red") if malicious else Text("honest"),
            *(f"{report.scores[member] / MAX_SCORE:.2f}" for report in summary.rounds),
            f"{mean:.2f}",
        )
    return table


def _audit(summary: DemoSummary) -> Text:
    text = Text("Audit", style="bold")
    for line in summary.audit.lines:
        text.append(f"\n  {line}", style="not bold")
    return text


def _verdict(summary: DemoSummary, goal: float) -> Text:
    reasons = failures(summary, goal)
    text = Text(f"\nFinished in {summary.seconds:.0f} s: ")
    if not reasons:
        text.append("passed", style="bold green")
        text.append(f"; every round finalized, accuracy {_fraction(summary.accuracy)}, the audit holds.")
        return text
    text.append("not passed", style="bold red")
    for reason in reasons:
        text.append(f"\n  - {reason}")
    return text


def _fraction(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return f"{sum(found) / len(found):.2f}" if found else "none"


def _seats(members: Sequence[int]) -> str:
    """Ascending members with runs shortened: "0-4 6"."""
    runs: list[list[int]] = []
    for member in members:
        if runs and member == runs[-1][-1] + 1:
            runs[-1].append(member)
        else:
            runs.append([member])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def _spread(sent: Sequence[int | None]) -> str:
    """Smallest to largest in kilobytes (1,000 bytes)."""
    known = [count for count in sent if count is not None]
    if not known:
        return "unknown"
    low, high = min(known) / 1000, max(known) / 1000
    return f"{low:,.0f}-{high:,.0f}"
