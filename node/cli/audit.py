"""`folkmoot audit`: recompute every round from the chain and one blob store."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from folkmoot.contracts.ledger import EthereumLedger
from folkmoot.node.audit import Audit, Finding, RoundAudit, audit_task
from folkmoot.node.cli.access import json_option, print_json, read_deployment
from folkmoot.node.conclude import Arithmetic
from folkmoot.node.errors import ExitCode
from folkmoot.node.update_keys import UpdateKeys, keys_folder
from folkmoot.p2p.store import DiskStore

__all__ = ["audit"]


@click.command(short_help="Recompute every round from chain and blobs.")
@click.option("--rpc", default="http://127.0.0.1:8545", show_default=True, help="JSON-RPC of the chain.")
@click.option(
    "--deployment",
    type=click.Path(path_type=Path),
    default=Path("deployment.toml"),
    show_default=True,
    help="The contracts' addresses, as `folkmoot chain deploy` wrote them.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    required=True,
    help="A node's blob store (its folder `blobs`, or a copy).",
)
@click.option("--task", "tasks", type=int, multiple=True, help="A task to audit; every task if left out.")
@click.option(
    "--backend", type=click.Choice(["numpy", "torch"]), default="numpy", show_default=True, help="Arithmetic."
)
@click.option("--threads", type=click.IntRange(1, 256), default=2, show_default=True)
@json_option
def audit(
    rpc: str, deployment: Path, store: Path, tasks: tuple[int, ...], backend: str, threads: int, as_json: bool
) -> int:
    """Recompute every round of every task from the chain and one node's blob store. Only reads; needs no
    private key. Prints a line for each round; exit code 0 only if everything holds, 1 with the round, the
    member and the reason of whatever does not.

    \b
    Example:
      folkmoot audit --rpc http://127.0.0.1:8545 --deployment deployment.toml --store hospital-a/blobs
    """
    blobs = DiskStore.open_readonly(store)
    keys = UpdateKeys(keys_folder(store))
    ledger = EthereumLedger(rpc, read_deployment(deployment))
    console = Console(stderr=as_json, highlight=False)
    audits = []
    for task in tasks or tuple(task.id for task in ledger.tasks()):
        console.print(f"task {task}")
        audits.append(
            audit_task(
                ledger,
                task,
                blobs,
                keys,
                Arithmetic(backend, threads),
                progress=lambda found: console.print(_line(found), soft_wrap=True),
            )
        )
        for finding in audits[-1].findings:
            console.print(f"  ✗ {_sentence(finding)}", soft_wrap=True)
    holds = all(found.holds for found in audits)
    if as_json:
        print_json({"holds": holds, "tasks": [_document(found) for found in audits]})
    else:
        rounds = sum(len(found.rounds) for found in audits)
        findings = sum(len(found.findings) for found in audits)
        verdict = "everything holds" if holds else f"the audit failed with {findings} findings"
        console.print(f"{rounds} rounds recomputed: {verdict}.")
    return ExitCode.DONE if holds else ExitCode.FAILED


def _line(found: RoundAudit) -> str:
    if found.findings:
        return f"  round {found.round}: does not hold ({len(found.findings)} findings)"
    rejected = f", {found.rejected.bit_count()} rejected" if found.rejected else ""
    return (
        f"  round {found.round}: holds, {found.outcome}, {found.included.bit_count()} updates{rejected}, "
        f"model {found.model}"
    )


def _sentence(finding: Finding) -> str:
    where = "" if finding.round is None else f"round {finding.round}: "
    who = "" if finding.member is None else f"member {finding.member}: "
    return f"{where}{who}{finding.reason}"


def _document(found: Audit) -> dict[str, object]:
    return {
        "task": found.task,
        "name": found.name,
        "holds": found.holds,
        "rounds": [
            {
                "round": r.round,
                "holds": not r.findings,
                "outcome": r.outcome,
                "model": r.model,
                "included": r.included,
                "rejected": r.rejected,
            }
            for r in found.rounds
        ],
        "findings": [{"round": f.round, "member": f.member, "reason": f.reason} for f in found.findings],
    }
