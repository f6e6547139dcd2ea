"""The demonstration's displays, fed with records as seven nodes write them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from folkmoot.node.demo.collect import accuracy_after, round_reports
from folkmoot.node.demo.dashboard import LiveProgress, PlainProgress, progress
from folkmoot.node.demo.picture import draw
from folkmoot.node.demo.report import comparison_table, print_report
from folkmoot.node.demo.summary import (
    AuditVerdict,
    DemoSummary,
    Federation,
    RoundReport,
    failures,
    write_summaries,
)
from folkmoot.node.record import (
    Accused,
    Evaluated,
    PhaseEntered,
    Record,
    RoundApplied,
    Traffic,
    Trained,
    Trouble,
)

FEDERATION = Federation("digits", 7, (5, 6), "sign-flip x10", "trimmed-mean", 2, 5, 1.0, 1, "embedded")
ACCURACIES = {
    "trimmed-mean": (0.864, 0.916, 0.922, 0.939, 0.933),
    "median": (0.858, 0.922, 0.928, 0.942, 0.939),
    "mean": (0.178, 0.028, 0.086, 0.092, 0.086),
    "krum": (0.811, 0.900, 0.903, 0.903, 0.903),
    "multi-krum": (0.930, 0.947, 0.950, 0.953, 0.958),
}
DURATIONS = {"train": 2.0, "commit": 1.5, "reveal": 0.5, "vote": 0.25, "attest": 0.75, "finalize": 3.0}
ROUND_SECONDS = 10.0


def recorded_round(rule: str, member: int, number: int) -> list[Record]:
    """What one node writes during one round of eight seconds."""
    start = 1_000 + number * ROUND_SECONDS
    records: list[Record] = []
    clock = start
    for phase, seconds in DURATIONS.items():
        records.append(PhaseEntered(clock, 1, number, 0, phase))
        clock += seconds
    records.insert(1, Trained(start + 2, 1, number, 205, 2.0, {"loss": 0.1}))
    verdicts = {str(seat): "delivered" for seat in range(7)}
    included, rejected = 0b1111111, 0
    if number == 2:
        verdicts["4"], included, rejected = "withheld", 0b1101111, 0b0010000
    weights = {str(s): 0.2 if s < 5 else 0.0 for s in range(7)} if rule == "multi-krum" else None
    scores = tuple(45_000 + 900 * seat if seat < 5 else 700 for seat in range(7))
    applied = RoundApplied(
        *(clock, 1, number, 0, "aggregated", f"model{number}", f"manifest{number}"),
        *(included, rejected, verdicts, {}, weights, scores, True, 212_345 + number, "0xabc"),
    )
    accuracy = ACCURACIES[rule][number]
    evaluated = Evaluated(clock + 0.5, 1, number, 0.3, 359, {"accuracy": accuracy if member < 5 else 0.0})
    traffic = Traffic(clock + 0.5, 1, number, (number + 1) * (100_000 + member * 10_000), 90_000)
    return [*records, applied, evaluated, traffic]


def recorded(rule: str = "trimmed-mean", rounds: int = 5) -> dict[int, list[Record]]:
    """What seven nodes write over a whole demonstration."""
    start = Evaluated(999.0, 1, -1, 2.3, 359, {"accuracy": 0.1})
    return {
        member: [start, *(r for number in range(rounds) for r in recorded_round(rule, member, number))]
        for member in range(7)
    }


def summary(rule: str = "trimmed-mean", rounds: int = 5, held: bool = True) -> DemoSummary:
    """A finished demonstration under this rule."""
    federation = replace(FEDERATION, rule=rule)
    records = recorded(rule, rounds)
    lines = tuple(f"round {n + 1}: recomputed, equal" for n in range(rounds))
    return DemoSummary(
        federation,
        accuracy_after(federation, records, -1),
        round_reports(federation, records),
        AuditVerdict(held, lines),
        seconds=62.5,
        folder="folkmoot-demo",
    )


def shown(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def plain_console(terminal: bool = False, width: int = 140) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def test_records_become_one_report_per_round() -> None:
    reports = round_reports(FEDERATION, recorded())
    assert [report.round for report in reports] == [0, 1, 2, 3, 4]
    assert [report.accuracy for report in reports] == pytest.approx(ACCURACIES["trimmed-mean"])
    third = reports[2]
    assert third.included == (0, 1, 2, 3, 5, 6)
    assert third.rejected == (4,)
    assert third.verdicts[4] == "withheld"
    assert third.sent == tuple(100_000 + member * 10_000 for member in range(7))
    assert third.phases == pytest.approx(DURATIONS)
    assert third.models == ("model2",)
    assert third.gas == 212_347


def test_members_whose_update_got_no_weight_are_told_apart() -> None:
    reports = round_reports(replace(FEDERATION, rule="multi-krum"), recorded("multi-krum"))
    assert reports[0].unused == (5, 6)
    assert round_reports(FEDERATION, recorded())[0].unused == ()


def test_a_peer_that_was_killed_and_restarted_leaves_gaps_and_no_error() -> None:
    records = recorded()
    records[0] = [r for r in records[0] if getattr(r, "round", None) not in (1, 2)]
    records[3] = []
    restarted = Traffic(1_048.5, 1, 4, 5_000, 5_000)
    records[2] = [restarted if isinstance(r, Traffic) and r.round == 4 else r for r in records[2]]
    reports = round_reports(FEDERATION, records)
    assert len(reports) == 5
    assert reports[1].sent[0] is None
    assert reports[1].sent[3] is None
    assert reports[4].sent[2] == 5_000


def test_a_passing_demonstration_has_no_failures_and_every_way_to_fail_is_named() -> None:
    good = summary()
    assert failures(good) == ()
    assert "accuracy is 0.086, expected at least 0.85" in failures(summary("mean"))
    assert "round 3, 4 was not finalized" in failures(summary(rounds=3))
    assert "the audit does not hold" in failures(summary(held=False))
    forked = replace(good.rounds[1], models=("a", "b"))
    rounds: tuple[RoundReport, ...] = (good.rounds[0], forked, *good.rounds[2:])
    assert "after round 1 honest members hold 2 different models" in failures(replace(good, rounds=rounds))
    assert "no honest member reported an accuracy" in failures(
        replace(good, rounds=(*good.rounds[:4], replace(good.rounds[4], accuracy=None)))
    )


def test_a_demonstration_without_a_single_round_can_be_reported(tmp_path: Path) -> None:
    nothing = summary(rounds=0, held=False)
    console = plain_console()
    print_report(console, nothing)
    console.print(comparison_table([nothing]))
    draw(tmp_path / "demo.png", [nothing])
    assert "round 0, 1, 2, 3, 4 was not finalized" in shown(console)


def test_the_report_shows_what_a_reader_asks_for() -> None:
    console = plain_console()
    print_report(console, summary())
    text = shown(console)
    for expected in (
        *("digits: 7 members, rule trimmed-mean, members 5-6 malicious (sign-flip x10)", "0.933"),
        *("4 withheld", "212,345", "100-160", "malicious", "recomputed, equal", "passed", "0.01", "3.00"),
    ):
        assert expected in text


def test_a_terminal_of_80_columns_cuts_nothing_off() -> None:
    console = plain_console(width=80)
    print_report(console, summary())
    console.print(comparison_table([summary(rule) for rule in ACCURACIES]))
    assert "…" not in shown(console)
    assert "0-3 5-6" in shown(console)


def test_the_comparison_has_one_line_per_rule_and_shows_the_collapse() -> None:
    console = plain_console()
    console.print(comparison_table([summary(rule) for rule in ACCURACIES]))
    lines = shown(console).splitlines()
    collapsed = next(line for line in lines if line.strip().startswith("mean"))
    assert "0.086" in collapsed
    assert "no" in collapsed
    survived = next(line for line in lines if line.strip().startswith("multi-krum"))
    assert "0.958" in survived
    assert "yes" in survived


def test_summary_json_is_written_whole_and_again(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for _ in range(2):
        write_summaries(path, [summary(), summary("mean")])
    document = json.loads(path.read_text())
    assert [run["federation"]["rule"] for run in document["runs"]] == ["trimmed-mean", "mean"]
    assert document["runs"][0]["failures"] == []
    assert document["runs"][0]["accuracy"] == pytest.approx(0.933)
    assert document["runs"][0]["rounds"][2]["verdicts"]["4"] == "withheld"
    assert document["runs"][1]["failures"] == ["accuracy is 0.086, expected at least 0.85"]
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("rules", [["trimmed-mean"], list(ACCURACIES)], ids=["one-run", "comparison"])
def test_the_picture_is_a_png_that_replaces_the_last_one(tmp_path: Path, rules: list[str]) -> None:
    path = tmp_path / "demo.png"
    path.write_bytes(b"old")
    draw(path, [summary(rule) for rule in rules])
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size > 20_000
    assert [p.name for p in tmp_path.iterdir()] == ["demo.png"]


def test_without_a_terminal_progress_is_plain_lines() -> None:
    console = plain_console()
    now = iter(range(1_000, 100_000))
    with progress(console, FEDERATION, lambda: float(next(now))) as display:
        assert isinstance(display, PlainProgress)
        display.announce("starting the chain")
        for member, records in recorded(rounds=1).items():
            for record in records:
                display.observe(member, record)
        display.observe(1, Accused(1.0, 1, 0, 6, "two-commitments", "two digests", ()))
        display.observe(2, Trouble(1.0, "the chain does not answer; trying again"))
    text = shown(console)
    assert "starting the chain" in text
    assert "the genesis model: accuracy 0.100" in text
    assert "peer 3: round 0, train" in text
    assert text.count("round 0 is final, gas 212,345, not delivered: none") == 1
    assert text.count("round 0: accuracy 0.864") == 1
    assert "peer 1 accuses member 6: two-commitments" in text
    assert "peer 2: the chain does not answer" in text
    assert "\x1b" not in text


def test_on_a_terminal_progress_is_a_table_with_a_line_per_peer() -> None:
    console = plain_console(terminal=True)
    with progress(console, FEDERATION, lambda: 1_012.0) as display:
        assert isinstance(display, LiveProgress)
        for member, records in recorded(rounds=2).items():
            for record in records[:-4]:
                display.observe(member, record)
        display.announce("round 2")
    last = shown(console).rpartition("digits, rule trimmed-mean")[2]
    assert last.count("sign-flip x10") == 2
    assert last.count("honest") == 5
    assert last.count("attest") == 7
    assert "round 0  ━" in last


def test_a_record_of_a_seat_outside_the_federation_changes_nothing() -> None:
    console = plain_console()
    with progress(console, replace(FEDERATION, members=3, malicious=()), lambda: 0.0) as display:
        display.observe(0, recorded(rounds=1)[0][-3])
    assert "round 0 is final" in shown(console)
