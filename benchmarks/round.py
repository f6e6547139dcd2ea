"""What a round costs outside training: seconds by phase, bytes on the wire and gas, for several sizes.

    python benchmarks/round.py                    # 4, 8 and 16 peers
    python benchmarks/round.py --peers 4 --json

Every size is a real federation of processes on this machine (embedded chain, digits, trimmed mean). The
first round is left out: in it the processes start and connect. Ratios are to the first size.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table

from folkmoot.node.demo.dashboard import progress
from folkmoot.node.demo.demonstration import Attack, demonstrate
from folkmoot.node.demo.summary import PHASES, DemoSummary, Federation

WAITING = tuple(phase for phase in PHASES if phase != "train")


@click.command()
@click.option("--peers", "sizes", type=int, multiple=True, default=(4, 8, 16), show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(sizes: tuple[int, ...], rounds: int, as_json: bool) -> None:
    """Measure rounds of federations of several sizes, one after another."""
    shown = Console(stderr=True, highlight=False)
    found = []
    with tempfile.TemporaryDirectory(prefix="folkmoot-benchmark-") as folder:
        for size in sizes:
            federation = Federation(
                "digits", size, (), None, "trimmed-mean", (size - 1) // 3, rounds, 1.0, 1, "embedded"
            )
            place = Path(folder) / str(size)
            with progress(shown, federation, time.time) as display:
                summary = demonstrate(federation, Attack("sign-flip", 1.0), place, display)
            found.append(_measure(summary))
    print(json.dumps(found, indent=2)) if as_json else Console().print(_table(found))


def _measure(summary: DemoSummary) -> dict[str, float]:
    """Medians over all rounds but the first."""
    reports = [report for report in summary.rounds if report.round > 0]
    sent = [count for report in reports for count in report.sent if count is not None]
    phases = {phase: median(report.phases[phase] for report in reports) for phase in PHASES}
    return {
        "peers": summary.federation.members,
        "rounds": len(reports),
        **phases,
        "outside training": sum(phases[phase] for phase in WAITING),
        "kB sent per peer": median(sent) / 1000,
        "gas": median(report.gas for report in reports),
    }


def _table(found: list[dict[str, float]]) -> Table:
    """One column a size, one row a quantity, with the ratio to the first size in brackets."""
    table = Table(
        title="One round (medians; seconds by phase; ratio to the first size)", title_justify="left"
    )
    table.add_column("peers")
    for row in found:
        table.add_column(f"{row['peers']:.0f}", justify="right")
    for name in [name for name in found[0] if name != "peers"]:
        first = found[0][name]
        table.add_row(name, *(_number(row[name], first) for row in found))
    return table


def _number(value: float, first: float) -> str:
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return f"{shown} ({value / first:.1f})" if first else shown


if __name__ == "__main__":
    main()
