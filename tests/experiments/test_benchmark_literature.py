"""benchmarks/literature.py sets results beside every published figure, ours where we have them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

from folkmoot.experiments.results import CellResult, Evaluation, write_result
from folkmoot.experiments.specification import read_grid

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "benchmarks" / "bucketing.csv"


def test_the_published_experiment_is_the_one_that_the_examples_repeat() -> None:
    with PUBLISHED.open() as stream:
        theirs = {
            (row["rule"], row["bucket"] != "0", float(row["momentum"]), row["attack"])
            for row in csv.DictReader(stream)
        }
    ours = {
        (cell.rule.name, bool(cell.rule.pre), cell.training.momentum, cell.attack.name)
        for name in ("bucketing", "bucketing-momentum")
        for cell in read_grid(ROOT / "examples" / f"{name}.toml").cells
    }
    assert theirs == {key for key in ours if key[3] != "none"}
    assert len(theirs) == 80


def test_ours_is_the_mean_over_the_seeds_that_are_there(tmp_path: Path) -> None:
    cells = [
        cell
        for cell in read_grid(ROOT / "examples" / "bucketing.toml").cells
        if cell.rule.name == "krum" and cell.rule.pre and cell.attack.name == "mimic"
    ]
    for cell, accuracy in zip(cells[:2], (0.5, 0.7), strict=True):
        final = Evaluation(600, accuracy, 1.0, "")
        write_result(tmp_path, CellResult(cell.id, cell.settings(), (final,), {}, {}, 0, 0))
    out = tmp_path / "beside.json"
    program = [sys.executable, ROOT / "benchmarks" / "literature.py", tmp_path, "--json", out]
    said = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "60.0 / 54.6" in said
    found = [entry for entry in json.loads(out.read_text()) if entry["ours"] is not None]
    assert found == [
        {
            "rule": "krum",
            "bucket": 2,
            "momentum": 0.0,
            "attack": "mimic",
            "ours": 60.0,
            "seeds": 2,
            "theirs": 54.6,
        }
    ]
