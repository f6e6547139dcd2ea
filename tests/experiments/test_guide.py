"""The guide's examples are files that run: its grids, its plugin, and the grids in examples/."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from folkmoot.experiments.search import read_search
from folkmoot.experiments.specification import grid_of, read_grid

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
GRIDS = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
PLUGIN = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_file_that_the_guide_explains_is_a_grid():
    cells = grid_of(tomllib.loads(GRIDS[0])).cells
    # seeds, partitions, momenta, malicious, bits, rules, attacks
    assert len(cells) == 3 * 5 * 2 * 2 * 2 * (4 + 2) * (1 + 2 + 2)


def test_the_search_that_the_guide_shows_fits_its_grid():
    search = read_search(tomllib.loads(GRIDS[0] + GRIDS[1]))
    assert search.trials == 20
    assert set(search.space) == {"training.lr", "training.momentum", "rule.params.tau"}


@pytest.mark.slow
def test_the_plugin_of_the_guide_adds_a_rule_an_attack_and_a_model(tmp_path):
    (tmp_path / "my_lab.py").write_text(PLUGIN[0])
    (tmp_path / "grid.toml").write_text(GRIDS[2])
    command = [
        sys.executable,
        "-m",
        "folkmoot.node.cli",
        "experiment",
        "run",
        "grid.toml",
        "--out",
        "found",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["done"] == 4
    assert {place["rule"] for place in found["ranking"]} == {"shortest", "median"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_a_grid(path):
    assert read_grid(path).cells


def test_the_guide_counts_the_cells_of_its_first_grid():
    counted = re.search(r"The grid has (\d+) cells", GUIDE)
    assert counted is not None
    assert int(counted[1]) == len(read_grid(ROOT / "examples/digits.toml").cells)
