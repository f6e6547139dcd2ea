"""Our laboratory beside a published experiment, cell by cell: rules under extreme heterogeneity, with and
without bucketing and momentum.

    folkmoot experiment run examples/bucketing.toml --out found
    python benchmarks/literature.py found
    python benchmarks/literature.py found --json beside.json

Theirs: Karimireddy, He, Jaggi 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
third experiment, MNIST, test accuracy after 600 steps, means of 2 or 3 seeds, from the outputs published with
its code (github.com/epfml/byzantine-robust-noniid-optimizer); benchmarks/bucketing.csv holds them. Ours: the
means of whatever seeds the folder has, on Fashion-MNIST, which is harder; a cell that it lacks is a dash.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Key = tuple[str, int, float, str]
"""Rule, examples in a bucket (0 without), momentum, attack."""

ATTACKS = {
    "none": "none",
    "sign-flip": "bit flip",
    "label-flip": "label flip",
    "mimic": "mimic",
    "inner-product": "IPM",
    "little-is-enough": "ALIE",
}
"""The paper's words for our attacks."""


def published() -> dict[Key, float]:
    """Their accuracies in per cent. They did not run it without attack."""
    with (Path(__file__).parent / "bucketing.csv").open(encoding="utf-8") as stream:
        return {
            (row["rule"], int(row["bucket"]), float(row["momentum"]), row["attack"]): float(row["accuracy"])
            for row in csv.DictReader(stream)
        }


def measured(folder: Path) -> dict[Key, list[float]]:
    """Our final accuracies in per cent, one for each seed. Raises SystemExit for results of other grids."""
    found: dict[Key, list[float]] = defaultdict(list)
    others: dict[Key, dict[str, Any]] = {}
    for path in sorted(folder.glob("cells/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        settings = result["settings"]
        *pre, rule = settings["rule"].split(" + ")
        key = (
            rule.split()[0],
            2 if "bucketing s=2" in pre else 0,
            settings["training.momentum"],
            settings["attack"].split()[0],
        )
        rest = {name: value for name, value in settings.items() if name != "seed"}
        if others.setdefault(key, rest) != rest:
            raise SystemExit(f"{folder} has more than one setting of {' '.join(map(str, key))}; take another")
        found[key].append(100 * result["accuracy"])
    return found


def beside(theirs: Mapping[Key, float], ours: Mapping[Key, list[float]]) -> list[dict[str, Any]]:
    """One entry for each cell that either has."""
    return [
        {
            **dict(zip(("rule", "bucket", "momentum", "attack"), key, strict=True)),
            "ours": statistics.fmean(ours[key]) if key in ours else None,
            "seeds": len(ours.get(key, ())),
            "theirs": theirs.get(key),
        }
        for key in sorted(
            {*theirs, *ours}, key=lambda key: (key[2], key[0], key[1], list(ATTACKS).index(key[3]))
        )
    ]


def main() -> None:
    """Print both, a line for each rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with the results of examples/bucketing.toml")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    entries = beside(published(), measured(options.folder))
    if options.json:
        options.json.write_text(json.dumps(entries, indent=2) + "\n")
    cells = {(e["momentum"], e["rule"], e["bucket"], e["attack"]): e for e in entries}
    for momentum in sorted({key[0] for key in cells}):
        heading = f"Member momentum {momentum:g}, ours / theirs (%)"
        table = Table("rule", "buckets of", *ATTACKS.values(), title=heading)
        for rule, bucket in sorted({key[1:3] for key in cells}):
            row = [cells.get((momentum, rule, bucket, attack)) for attack in ATTACKS]
            shown = (f"{_shown(entry, 'ours')} / {_shown(entry, 'theirs')}" for entry in row)
            table.add_row(rule, str(bucket or "–"), *shown)
        Console(width=110).print(table)


def _shown(entry: Mapping[str, Any] | None, name: str) -> str:
    return "–" if entry is None or entry[name] is None else f"{entry[name]:.1f}"


if __name__ == "__main__":
    main()
