"""Records as JSON lines: every kind survives, and what is no record is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from folkmoot.node.record import (
    Accused,
    Evaluated,
    PhaseEntered,
    Record,
    RecordFile,
    RoundApplied,
    Traffic,
    Trained,
    Trouble,
    from_line,
    to_line,
)

RECORDS: list[Record] = [
    PhaseEntered(1.5, 1, 0, 2, "vote"),
    Trained(2.0, 1, 0, 60, 1.25, {"loss": 0.5}),
    Accused(3.0, 1, 0, 4, "two-votes", "attempt 0", ("00ff", "01fe")),
    RoundApplied(
        4.0, 1, 0, 0, "applied", "bafy-model", "bafy-manifest", 2**200, 0, {"0": "delivered"}, {"3": "cut"},
        {"0": 0.25}, (1, 65535), True, 144_662, "0xabc",
    ),
    RoundApplied(4.0, 1, 0, 0, "applied", "m", "m", 1, 2, {}, {}, None, (), False, 0, "0x"),
    Evaluated(5.0, 1, -1, 0.75, 100, {"accuracy": 0.5}),
    Trouble(6.0, "the chain does not answer: \u00e4\n\"quoted\""),
    Traffic(7.0, 1, 0, 12, 2**40),
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_as_one_line(record: Record) -> None:
    line = to_line(record)
    assert "\n" not in line
    assert from_line(line) == record


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[]",
        "7",
        "{}",
        '{"record": "Poem"}',
        '{"record": "Trouble"}',
        '{"record": "Trouble", "time": 1, "what": "x", "extra": 1}',
        '{"record": "Accused", "evidence": 7}',
        '{"record": ["Trouble"]}',
        to_line(RECORDS[0])[:-5],
    ],
)
def test_a_line_that_is_no_record_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError):
        from_line(line)


def test_records_are_appended_to_those_of_an_earlier_run(tmp_path: Path) -> None:
    for record in RECORDS:
        file = RecordFile(tmp_path / "records")
        file(record)
        file.close()
    lines = (tmp_path / "records").read_text(encoding="utf-8").splitlines()
    assert [from_line(line) for line in lines] == RECORDS


def test_a_line_that_a_crash_cut_short_does_not_swallow_the_next_record(tmp_path: Path) -> None:
    (tmp_path / "records").write_text(to_line(RECORDS[0]) + "\n" + to_line(RECORDS[1])[:20], encoding="utf-8")
    file = RecordFile(tmp_path / "records")
    file(RECORDS[2])
    file.close()
    first, cut, last = (tmp_path / "records").read_text(encoding="utf-8").splitlines()
    assert [from_line(first), from_line(last)] == [RECORDS[0], RECORDS[2]]
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        from_line(cut)


def test_a_record_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records")
    file(RECORDS[0])
    assert (tmp_path / "records").read_text(encoding="utf-8") == to_line(RECORDS[0]) + "\n"
    file.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_no_round() -> None:
    file = RecordFile(Path("/dev/full"))
    for record in RECORDS:
        file(record)
    file.close()
