"""`folkmoot demo`: a whole federation on this machine."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import click
from rich.console import Console

from folkmoot.aggregation.attacks import ATTACKS, Knowledge
from folkmoot.aggregation.rules import RULES
from folkmoot.node.datasets import DATASETS
from folkmoot.node.demo.dashboard import progress
from folkmoot.node.demo.demonstration import Attack, demonstrate
from folkmoot.node.demo.picture import draw
from folkmoot.node.demo.report import comparison_table, print_report
from folkmoot.node.demo.summary import GOAL, DemoSummary, Federation, failures, write_summaries
from folkmoot.node.errors import ExitCode, HomeExists, UsageProblem

__all__ = ["demo"]


@click.command(short_help="A whole federation on this machine.")
@click.option("--peers", type=click.IntRange(4, 64), default=7, show_default=True, help="Member nodes.")
@click.option("--malicious", type=click.IntRange(0), default=2, show_default=True, help="How many lie.")
@click.option(
    "--attack",
    type=click.Choice([name for name, attack in ATTACKS.items() if Knowledge.BLIND in attack.knowledge]),
    default="sign-flip",
    show_default=True,
    help="How they lie.",
)
@click.option("--strength", type=float, help="The attack's first parameter; 10 for sign-flip if left out.")
@click.option(
    "--rule", type=click.Choice(list(RULES)), default="trimmed-mean", show_default=True, help="Aggregation."
)
@click.option("--compare", help="Several rules, separated by commas, one after another, side by side.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option("--dataset", type=click.Choice(list(DATASETS)), default="digits", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set's files.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Dirichlet parameter of the data's division: smaller is more uneven.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--chain",
    type=click.Choice(["embedded", "anvil"]),
    default="embedded",
    show_default=True,
    help="The EVM that keeps the ledger.",
)
@click.option(
    "--goal",
    type=click.FloatRange(0, 1),
    default=GOAL,
    show_default=True,
    help="Accuracy that must be reached.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where everything is kept; folkmoot-demo-<time> if left out.",
)
def demo(
    peers: int,
    malicious: int,
    attack: str,
    strength: float | None,
    rule: str,
    compare: str | None,
    rounds: int,
    dataset: str,
    data_dir: Path | None,
    alpha: float,
    seed: int,
    chain: str,
    goal: float,
    folder: Path | None,
) -> int:
    """Run a federation on this machine: a chain, a node for each member (the last ones lie), rounds, tables,
    a picture, and an audit that recomputes everything. Exit code 0 only if every round finalized, the
    accuracy reached the goal, and the audit held; with --compare the best rule must reach the goal.

    \b
    Example:
      folkmoot demo
      folkmoot demo --rule mean --attack sign-flip --strength 10
      folkmoot demo --compare mean,median,trimmed-mean,krum,multi-krum
    """
    if 3 * malicious >= peers:
        raise UsageProblem(
            f"{malicious} liars among {peers} peers are too many: fewer than a third may lie; "
            f"take --peers {3 * malicious + 1} or --malicious {(peers - 1) // 3}"
        )
    rules = _rules(compare) if compare else [rule]
    lie = Attack(attack, 10.0 if strength is None and attack == "sign-flip" else strength)
    place = _folder(folder)
    console = Console(highlight=False)
    summaries = []
    for name in rules:
        federation = Federation(
            dataset, peers, tuple(range(peers - malicious, peers)), str(lie) if malicious else None,
            name, malicious, rounds, alpha, seed, chain,
        )  # fmt: skip
        home = place / name if len(rules) > 1 else place
        with progress(console, federation, time.time) as shown:
            summaries.append(demonstrate(federation, lie, home, shown, data_dir))
        print_report(console, summaries[-1], goal)
    if len(rules) > 1:
        console.print(comparison_table(summaries, goal))
    picture, document = place / "demo.png", place / "summary.json"
    draw(picture, summaries, goal)
    write_summaries(document, summaries, goal)
    console.print(f"Picture: {picture}\nSummary: {document}", soft_wrap=True)
    return ExitCode.DONE if _passed(summaries, goal) else ExitCode.FAILED


def _passed(summaries: list[DemoSummary], goal: float) -> bool:
    """Every run finalized and audits; the best one reaches the goal."""
    sound = all(not failures(summary, goal=0.0) for summary in summaries)
    return sound and any(not failures(summary, goal) for summary in summaries)


def _rules(names: str) -> list[str]:
    rules = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in rules if name not in RULES]:
        raise UsageProblem(f"no rule {unknown[0]!r}; known: {', '.join(RULES)}")
    return list(dict.fromkeys(rules))


def _folder(folder: Path | None) -> Path:
    if folder is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        return Path(f"folkmoot-demo-{stamp}").resolve()
    if folder.exists() and any(folder.iterdir()):
        raise HomeExists(f"{folder} is not empty: name another folder")
    return folder.resolve()
