"""One cell in memory and as processes with chain, gossip and sealed blobs: the same models, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from folkmoot.experiments.network import ComparedRound, Comparison

GRID = """
[data]
set = "digits"
[partition]
kind = "dirichlet"
alpha = 0.5
[model]
name = "mlp"
[training]
epochs = 1
batch = 16
lr = 0.3
momentum = 0.5
[federation]
members = 5
malicious = 1
rounds = 3
[lattice]
bits = {bits}
[rule]
name = "{rule}"
pre = {pre}
[attack]
name = "{attack}"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "pre", "attack", "bits"),
    [
        ("trimmed-mean", [], "little-is-enough", 16),
        ("geometric-median", ["nnm"], "inner-product-optimised", 8),
        ("median", [], "label-flip", 16),
    ],
)
def test_real_nodes_reach_the_models_of_the_run_in_memory(
    tmp_path: Path, rule: str, pre: list[str], attack: str, bits: int
) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID.format(rule=rule, pre=json.dumps(pre), attack=attack, bits=bits))
    command = [sys.executable, "-m", "folkmoot.node.cli", "experiment", "network"]
    done = subprocess.run(
        [*command, str(grid), "--out", str(tmp_path / "nodes"), "--json"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["held"]
    assert found["audit"]
    assert [r["equal"] for r in found["rounds"]] == [True] * 3
    assert [r["network"] for r in found["rounds"]] == [[r["memory"]] for r in found["rounds"]]
    assert len({r["memory"] for r in found["rounds"]}) == 3


def test_one_node_with_another_model_is_enough_for_a_difference() -> None:
    same = ComparedRound(0, "a", ("a", "a"), ())
    other = ComparedRound(1, "a", ("a", "b"), ())
    assert Comparison((same,), True, "").held
    assert not Comparison((same, other), True, "").held
    assert not Comparison((same,), False, "").held
