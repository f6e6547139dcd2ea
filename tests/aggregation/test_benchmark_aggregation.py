"""The benchmark of the aggregation core runs, tells who could not take part, and leaves its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "aggregation.py"

pytestmark = pytest.mark.slow


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def timings(results: list[dict[str, Any]], rule: str) -> dict[str, dict[str, Any]]:
    """The timings of a rule at the first size, by contender."""
    found = next(result for result in results if result["rule"] == rule)
    return {timing["name"]: timing for timing in found["timings"]}


def test_a_quick_run_times_every_rule_and_leaves_table_json_and_picture(tmp_path: Path) -> None:
    report, picture = tmp_path / "found.json", tmp_path / "found.png"
    shown = run("--quick", "--n", "10", "--d", "2000", "--json", str(report), "--picture", str(picture))
    found = json.loads(report.read_text(encoding="utf-8"))
    assert "n = 10, d = 2,000: milliseconds" in shown
    assert len(found["results"]) == 25
    for result in found["results"]:
        assert result["timings"][0]["median"] > 0, result["rule"]
        assert result["rule"] in shown
    ours = [answer for answer in found["memory"] if answer["contender"].startswith("ours")]
    assert [answer["label"] for answer in ours] == ["mean", "weighted-mean"]
    assert all(answer["extra"] > 0 for answer in ours)
    assert found["bandwidth"]["copy"] > 1e8
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_search_that_no_peer_finishes_is_named_and_gives_no_ratio(tmp_path: Path) -> None:
    report = tmp_path / "found.json"
    arguments = ("--quick", "--n", "50", "--d", "1000", "--rules", "mda", "--no-memory")
    shown = run(*arguments, "--json", str(report))
    results = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert timings(results, "mda")["ByzFL NumPy"]["obstacle"] == "not feasible: 1e+10 subsets"
    assert results[0]["ratio"] is None
    assert "ByzFL NumPy, mda: not feasible" in shown


def test_a_peer_without_the_rule_gives_no_ratio(tmp_path: Path) -> None:
    report = tmp_path / "found.json"
    run("--quick", "--d", "1000", "--rules", "phocas", "--no-memory", "--json", str(report))
    results = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert {timing["obstacle"] for timing in results[0]["timings"][2:]} == {"no such rule"}
    assert results[0]["ratio"] is None


def test_streaming_aggregates_from_files_and_removes_them(tmp_path: Path) -> None:
    folder, report = tmp_path / "updates", tmp_path / "found.json"
    arguments = ("--values", "20000", "--n", "7", "--rules", "median", "krum", "smea")
    run("--streaming", str(folder), *arguments, "--json", str(report))
    found = json.loads(report.read_text(encoding="utf-8"))["streaming"]
    assert [entry["label"] for entry in found] == ["median", "krum"]
    assert all(0 < entry["resident"] < 1_000_000_000 for entry in found)
    assert list(folder.iterdir()) == []


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--quick", "--rules", "average"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no rule average" in done.stderr
    assert "trimmed-mean" in done.stderr
