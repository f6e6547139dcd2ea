"""benchmarks/laboratory.py runs, and an experiment here is the same experiment in ByzFL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from folkmoot.node.datasets import FASHION_MNIST_FOLDER

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "laboratory.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FASHION_MNIST_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not there"
    ),
]


def run(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, BENCHMARK, *arguments], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("attack", "rules"),
    [
        ("sign-flip", ["trimmed-mean"]),
        ("little-is-enough", ["krum", "nnm+trimmed-mean"]),
        ("inner-product", ["geometric-median"]),
    ],
)
def test_every_step_gives_the_accuracy_that_byzfl_has(tmp_path: Path, attack: str, rules: list[str]) -> None:
    report, picture = tmp_path / "found.json", tmp_path / "found.png"
    run(
        *("curves", "--steps", "8", "--test", "500", "--attacks", attack, "--rules", *rules),
        *("--json", report, "--picture", picture),
    )
    found = json.loads(report.read_text())["found"]
    assert [entry["rule"] for entry in found] == rules
    for entry in found:
        assert len(entry["points"]) == 8
        assert entry["largest_gap"]["ours"] <= 0.004, entry
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_quick_race_gives_ratios(tmp_path: Path) -> None:
    report = tmp_path / "found.json"
    said = run(
        *("speed", "--n", "10", "--model", "cnn", "--rules", "krum", "--repeat", "1", "--json", report)
    )
    (entry,) = json.loads(report.read_text())["found"]
    assert entry["ours_ratio"] == entry["byzfl"] / entry["ours"]
    assert "geometric mean of the ratios, bfloat16" in said
