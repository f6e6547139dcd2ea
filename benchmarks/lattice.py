"""What the lattice costs: final accuracy with 16 and 8 bits beside plain float32 aggregation by ByzFL.

    python benchmarks/lattice.py --json lattice.json
    python benchmarks/lattice.py --data fashion-mnist --model small-cnn --rounds 300

The same federations, batches, attacks and seeds; only what happens to the updates differs. float32 is ByzFL's
rule on PyTorch tensors, then model + aggregate. The last columns tell by how much the mean with a lattice
differs from the mean with float32, in units of the seeds' standard deviation under float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peers
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from folkmoot.aggregation import RuleSpec, rule_spec
from folkmoot.experiments.cells import AttackChoice, Cell, ModelChoice, PartitionChoice, Training
from folkmoot.experiments.exchange import Applied
from folkmoot.experiments.federation import Federation
from folkmoot.node.datasets import Dataset, load_dataset

Floats = npt.NDArray[np.float32]
FloatRule = Callable[[Floats], Any]

MEMBERS, LIARS, NU = 10, 2, 0.05


def _after(first: FloatRule, second: FloatRule) -> FloatRule:
    return lambda updates: second(first(updates))


RULES: dict[str, tuple[RuleSpec, Callable[[Any], FloatRule]]] = {
    "mean": (rule_spec("mean", LIARS), lambda b: b.Average()),
    "median": (rule_spec("median", LIARS), lambda b: b.Median()),
    "trimmed-mean": (rule_spec("trimmed-mean", LIARS), lambda b: b.TrMean(f=LIARS)),
    "krum": (rule_spec("krum", LIARS, {"excluded": 1}), lambda b: b.Krum(f=LIARS)),
    "rfa": (
        rule_spec("rfa", LIARS, {"nu": NU, "steps": 8}),
        lambda b: b.GeometricMedian(nu=NU, T=8),
    ),
    "nnm + trimmed-mean": (
        rule_spec("trimmed-mean", LIARS, {}, ["nnm"]),
        lambda b: _after(b.NNM(f=LIARS), b.TrMean(f=LIARS)),
    ),
}


class FloatExchange:
    """A rule on float32, as others aggregate."""

    def __init__(self, rule: FloatRule) -> None:
        self._rule = rule

    def apply(self, weights: Floats, updates: Floats, examples: Sequence[int], round_number: int) -> Applied:
        """weights + rule(updates), in float32."""
        return Applied(
            weights + self._rule(torch.from_numpy(updates)).numpy(), tuple(range(len(updates))), None
        )

    def foreseen(self, examples: Sequence[int], malicious: int) -> Callable[[Floats], Floats]:
        """The rule itself."""
        return lambda updates: self._rule(torch.from_numpy(updates)).numpy()


def final_accuracy(cell: Cell, dataset: Dataset, float_rule: FloatRule | None) -> float:
    """Of the cell, with the lattice or, given a rule on floats, without."""
    federation = Federation(cell, dataset)
    if float_rule is not None:
        federation.exchange = FloatExchange(float_rule)
    for number in range(cell.rounds):
        federation.round(number)
    return federation.evaluate(cell.rounds).accuracy


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="digits")
    add("--model", default="mlp")
    add("--rounds", type=int, default=150)
    add("--lr", type=float, default=0.5)
    add("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    add("--rules", nargs="+", choices=tuple(RULES), default=list(RULES))
    add("--attacks", nargs="+", default=["none", "sign-flip", "little-is-enough"])
    add("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("--seeds needs two or more, whose deviation is the measure")
    torch.set_num_threads(1)
    dataset, library = load_dataset(options.data), peers.byzfl()
    table = Table("rule", "attack", "float32 %", "spread", "16 bits %", "8 bits %", "16: off by", "8: off by")
    found = []
    contests = [(rule, attack) for rule in options.rules for attack in options.attacks]
    for rule, attack in track(contests, console=Console(stderr=True)):
        accuracies: dict[str, list[float]] = {"float32": [], "16": [], "8": []}
        for seed in options.seeds:
            for kind, values in accuracies.items():
                cell = Cell(
                    data=options.data,
                    partition=PartitionChoice("dirichlet", ("alpha", 1.0)),
                    model=ModelChoice(options.model),
                    training=Training(lr=options.lr, batch=32, steps=1, momentum=0.9),
                    rule=RULES[rule][0],
                    attack=AttackChoice(attack),
                    members=MEMBERS,
                    malicious=LIARS,
                    rounds=options.rounds,
                    seed=seed,
                    bits=8 if kind == "8" else 16,
                )
                float_rule = RULES[rule][1](library) if kind == "float32" else None
                values.append(final_accuracy(cell, dataset, float_rule))
        means = {kind: statistics.fmean(values) for kind, values in accuracies.items()}
        spread = statistics.stdev(accuracies["float32"])
        off = {kind: (means[kind] - means["float32"]) / spread if spread else 0.0 for kind in ("16", "8")}
        found.append({"rule": rule, "attack": attack, "accuracies": accuracies, "off": off})
        table.add_row(
            rule, attack, f"{100 * means['float32']:.2f}", f"{100 * spread:.2f}", f"{100 * means['16']:.2f}",
            f"{100 * means['8']:.2f}", f"{off['16']:+.2f}", f"{off['8']:+.2f}",
        )  # fmt: skip
    Console(highlight=False).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
